# SPDX-License-Identifier: MIT
"""Runs of guide and model that go over all data, each datum that counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_infovae._core.progress import with_progress
from pyro_infovae._traces.fresh_draws import FreshDraws, Minibatch, datum_of_rows
from pyro_infovae._traces.runs import Program
from pyro_infovae.groups import Group
from pyro_infovae.rows import Rows
from pyro_infovae.sites import data_size, is_latent, row_plates


@dataclass(frozen=True, eq=False)
class DataRuns:
    """A model and a guide to run over all data.

    Attributes:
        draws: the model and the guide.
        minibatches: minibatches that cover the data; a single None where no plate is subsampled.
        kept: of the rows of all minibatches, one for each datum that is not masked.
        datum: which datum of the data set each of these is, in increasing order.
        features: a name for each feature: its site's, and its number where there are several.
    """

    draws: FreshDraws
    minibatches: tuple[Minibatch | None, ...]
    kept: Int[Tensor, " data"]
    datum: Int[Tensor, " data"]
    features: tuple[str, ...]

    @classmethod
    def of(
        cls,
        asker: str,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: Iterable[str] | None,
    ) -> DataRuns:
        """Find out about plates and masks by a run over all data.

        Raises:
            ValueError: for latents that cannot be selected, or are in several stacks of plates;
                for several subsampled plates; for fewer than 2 data that count.
        """
        draws = FreshDraws(asker, model, guide, args, kwargs, sites)
        parts = minibatches(asker, draws.draw())
        groups = [draws.draw(batch) for batch in parts]
        datum = torch.cat([datum_of_rows(group) for group in groups])
        counts = torch.cat([_counts(group) for group in groups])
        kept = first_of_each(datum, counts.to(datum.device))
        if len(kept) < 2:
            raise ValueError(
                f"{asker}: Expected at least 2 data that are not masked; got {len(kept)}"
            )
        features = feature_names(groups[0].posterior)
        return cls(draws, tuple(parts), kept, datum[kept], features)

    def draw(self) -> DataRun:
        """One run per minibatch."""
        return DataRun(tuple(self.draws.draw(batch) for batch in self.minibatches), self)

    def repeat(
        self, quantity: Callable[[Group], Float[Tensor, "rows ..."]], times: int
    ) -> Float[Tensor, "times data ..."]:
        """A quantity of each datum in so many runs; in two, where nothing in it is random."""
        values = [self.draw().per_datum(quantity) for _ in range(2)]
        if not torch.equal(*values):
            more = with_progress(range(2, times), total=times - 2, label=self.draws.asker)
            values += [self.draw().per_datum(quantity) for _ in more]
        return torch.stack(values)

    def check_finite(self, codes: Float[Tensor, "... data features"], source: str) -> None:
        """Refuse codes that are not finite, of what ``source`` says."""
        check_finite(codes, self.features, asker=self.draws.asker, source=source)


@dataclass(frozen=True, eq=False)
class DataRun:
    """A run of each minibatch.

    Attributes:
        groups: the latents, a group per minibatch.
        runs: what was run.
    """

    groups: tuple[Group, ...]
    runs: DataRuns

    def per_datum(
        self, quantity: Callable[[Group], Float[Tensor, "rows ..."]]
    ) -> Float[Tensor, "data ..."]:
        """A quantity of each row, for the data that count."""
        rows = torch.cat([quantity(group) for group in self.groups])
        return rows[self.runs.kept.to(rows.device)]

    @property
    def posterior(self) -> Float[Tensor, "data features"]:
        """The codes that the guide drew.

        Raises:
            ValueError: where one of them is not finite.
        """
        drawn = self.per_datum(lambda group: group.posterior.values)
        self.runs.check_finite(drawn, "guide draws")
        return drawn

    @property
    def prior(self) -> Float[Tensor, "data features"]:
        """A code of each datum drawn afresh from the model.

        Raises:
            ValueError: where one of them is not finite.
        """
        drawn = self.per_datum(lambda group: group.prior(1).values)
        self.runs.check_finite(drawn, "model draws")
        return drawn


def check_finite(
    codes: Float[Tensor, "... data features"], features: Sequence[str], *, asker: str, source: str
) -> None:
    """Refuse codes that hold nan or infinity.

    Args:
        codes: the codes.
        features: the names of their features.
        asker: who needs them, for messages.
        source: what they come from, for messages: "guide draws" or the like.

    Raises:
        ValueError: naming the features.
    """
    unfit = ~codes.isfinite().flatten(0, -2)
    if unfit.any():
        names = [name for name, bad in zip(features, unfit.any(0), strict=True) if bad]
        raise ValueError(
            f"{asker}: Expected finite codes; the {source} nan or infinity in "
            f"{int(unfit.any(1).sum())} of {len(unfit)} rows of {names}: look at its parameters"
        )


def feature_names(rows: Rows) -> tuple[str, ...]:
    """A name for each feature: that of its site, and its number where the site has several."""
    return tuple(
        name if values.shape[1] == 1 else f"{name}[{feature}]"
        for name, values in rows.latents.items()
        for feature in range(values.shape[1])
    )


def check_all_drawn(asker: str, group: Group) -> None:
    """Refuse a prior that may depend on a latent of the model's own.

    Raises:
        ValueError: naming it.
    """
    (run,) = group.runs
    for name, msg in run.model.items():
        if is_latent(msg) and name not in run.guide:
            raise ValueError(
                f"{asker}: the guide does not draw '{name}', on which the prior of "
                f"{list(group.names)} may depend: draw it in the guide"
            )
        if name == group.names[-1]:
            break


def minibatches(asker: str, group: Group) -> list[Minibatch | None]:
    """Minibatches of the subsampled plate that cover the data, the last one filled from the start.

    Args:
        asker: who needs them, for messages.
        group: the latents, in a run of any minibatch.

    Raises:
        ValueError: for several subsampled plates.
    """
    (run,) = group.runs
    frames = row_plates(run.model[group.names[0]])
    subsampled = [frame for frame in frames if data_size([frame]) != frame.size]
    if not subsampled:
        return [None]
    if len(subsampled) > 1:
        raise ValueError(
            f"{asker} runs all minibatches of one plate; got several that are subsampled, "
            f"{[frame.name for frame in subsampled]}: leave all but one whole"
        )
    (frame,) = subsampled
    total = data_size([frame])
    return [
        Minibatch(frame.name, torch.arange(start, start + frame.size) % total, asker=asker)
        for start in range(0, total, frame.size)
    ]


def _counts(group: Group) -> Bool[Tensor, " rows"]:
    """Whether a row is not masked."""
    rows = group.posterior
    if rows.weights is None:
        return torch.ones(len(rows.values), dtype=torch.bool)
    return rows.weights > 0


def first_of_each(
    datum: Int[Tensor, " rows"], counts: Bool[Tensor, " rows"]
) -> Int[Tensor, " data"]:
    """The first row that counts of each datum, in the order of the data."""
    rows = counts.nonzero().squeeze(1)
    rows = rows[datum[rows].argsort(stable=True)]
    is_first = torch.ones_like(rows, dtype=torch.bool)
    is_first[1:] = datum[rows[1:]] != datum[rows[:-1]]
    return rows[is_first]

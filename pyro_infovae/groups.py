# SPDX-License-Identifier: MIT
"""A group of latents in the runs that a base ELBO has scored: its rows, data and fresh draws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from pyro_infovae._arrays.gathering import own_draws
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import Rows as Rows
from pyro_infovae._core.rows import data_of, normal_rows, rows_of
from pyro_infovae._core.sites import Plate, Run, Sites
from pyro_infovae._traces.gathered_rows import gather
from pyro_infovae._traces.runs import draw_prior

__all__ = ["Group", "Rows"]


@dataclass(frozen=True)
class Group:
    """The selected latents that share a stack of plates, in the runs that the base has scored.

    With ``gather=True`` all that a group gives is that of all ranks of the process group.

    Attributes:
        names: the sites, in the order of the model.
        runs: the scored runs, one per particle (one for all when they are vectorised).
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        gather: whether the rows of all ranks count, or those of this one.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    model: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gather: bool = False

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The plates of the latents, left to right."""
        return self.runs[0].model[self.names[0]].plates

    @property
    def num_particles(self) -> int:
        """The number of draws per datum."""
        return sum(
            1 if run.particle_plate is None or run.particle is not None else run.particle_plate.size
            for run in self.runs
        )

    @cached_property
    def posterior(self) -> Rows:
        """The rows as the guide drew them and the model saw them."""
        return self._of_all_ranks(self._own_posterior)

    @property
    def data(self) -> dict[str, Shaped[Tensor, " rows *event"]]:
        """The observed values in the same plates, by site name, a row per row of the latents."""
        return self.with_data(self.own_data).data

    @property
    def own_data(self) -> dict[str, Shaped[Tensor, " rows *event"]]:
        """The same for the rows of this rank alone."""
        parts = [data_of(self.names, run) for run in self.runs]
        return {name: joined([part[name] for part in parts]) for name in parts[0]}

    @property
    def num_own_rows(self) -> int:
        """The number of rows of this rank."""
        return len(self._own_posterior.values)

    def with_data(
        self,
        own_data: dict[str, Shaped[Tensor, " rows *event"]],
        own_counts: Bool[Tensor, " rows"] | None = None,
    ) -> Rows:
        """The posterior's rows, and beside them data that are given for the rows of this rank.

        Args:
            own_data: the data.
            own_counts: which of the rows count; None for all that the latents' masks leave.
        """
        rows = replace(self._own_posterior, data=own_data)
        return self._of_all_ranks(rows.counting(own_counts))

    def prior(self, draws: int = 1) -> Rows:
        """The rows drawn afresh from the model, ``draws`` times, given all other latents."""
        # Each rank draws for its own rows, also where a penalty draws alike on all ranks.
        with own_draws() if self.gather else nullcontext():
            parts = [
                rows_of(self.names, self._redraw(run), run)
                for run in self.runs
                for _ in range(draws)
            ]
        return self._of_all_ranks(_pool(parts))

    def normals(self, program: Callable[[Run], Sites]) -> Rows | None:
        """Location and scale, per row, of the diagonal normal that the only latent is drawn from.

        Args:
            program: picks the guide's or the model's sites of a run.

        Returns:
            Rows with the latents ``"loc"`` and ``"scale"``; None for any other density.
        """
        (name,) = self.names
        parts = [normal_rows(name, program(run), run) for run in self.runs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        loc, scale = (joined([part[i] for part in known]) for i in (0, 1))
        latents = OrderedDict(loc=loc, scale=scale)
        return self._of_all_ranks(replace(self._own_posterior, latents=latents))

    @cached_property
    def _own_posterior(self) -> Rows:
        return _pool([rows_of(self.names, run.model, run) for run in self.runs])

    def _of_all_ranks(self, rows: Rows) -> Rows:
        return gather(rows) if self.gather else rows

    def _redraw(self, run: Run) -> Sites:
        has_own_latents = any(s.is_latent and n not in run.guide for n, s in run.model.items())
        if len(self.names) > 1 or has_own_latents:
            return draw_prior(self.model, self.args, self.kwargs, run, self.names)
        # Its prior, given all other latents, is what the scored run has it drawn from.
        (name,) = self.names
        site = run.model[name]
        return OrderedDict({name: replace(site, value=site.fn())})


def _pool(parts: list[Rows]) -> Rows:
    """The rows of several runs, one below the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    weights = None
    if any(part.weights is not None for part in parts):
        weights = joined([part.dense_weights for part in parts])
    return replace(
        first,
        latents=OrderedDict((n, joined([p.latents[n] for p in parts])) for n in first.latents),
        weights=weights,
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts one below the other; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))

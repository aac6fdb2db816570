# SPDX-License-Identifier: MIT
"""Runs of guide and model that go over all data, each datum that counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._traces.data_checks import check_batch_shape
from numpyro_backend._traces.fresh_draws import (
    Draw,
    FreshDraws,
    Minibatch,
    Outline,
    datum_of_rows,
    set_up,
)
from numpyro_backend._traces.runs import Program
from numpyro_backend.rows import Rows
from pyro_infovae._core.progress import with_progress

Quantity: TypeAlias = Callable[[Draw], Any]


@dataclass(frozen=True, eq=False)
class DataRuns:
    """A model and a guide to run over all data.

    Attributes:
        draws: the model and the guide.
        params: the values of parameters and mutable sites, by name.
        outline: what is known of every run.
        minibatches: minibatches that cover the data; a single empty one where no plate is
            subsampled.
        kept: of the rows of all minibatches, one for each datum that is not masked.
        datum: which datum of the data set each of these is, in increasing order.
        features: a name for each feature: its site's, and its number where there are several.
    """

    draws: FreshDraws
    params: Mapping[str, Any]
    outline: Outline
    minibatches: tuple[Minibatch, ...]
    kept: Int[np.ndarray, " data"]
    datum: Int[np.ndarray, " data"]
    features: tuple[str, ...]

    @classmethod
    def of(
        cls,
        asker: str,
        rng_key: Key[Array, ""],
        params: Mapping[str, Any],
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: Iterable[str] | None,
    ) -> DataRuns:
        """Find out about plates and masks by a run over all data.

        Raises:
            ValueError: for latents that cannot be selected, or are in several stacks of plates;
                for a guide that does not draw one code per datum; for several subsampled plates;
                for fewer than 2 data that count; for codes that are not finite.
        """
        set_up(rng_key, guide, args, kwargs)
        draws = FreshDraws(asker, model, guide, args, kwargs, sites)
        outline = draws.outline(rng_key, params)
        for name in outline.names:
            site = outline.run.model[name]
            check_batch_shape(asker, site, site.plates)
        parts = tuple(minibatches(asker, outline))
        found = _per_minibatch(draws, params, parts, _find_out)(rng_key)
        datum, counts, codes = (np.concatenate(values) for values in zip(*found, strict=True))
        kept = first_of_each(datum, counts)
        if len(kept) < 2:
            raise ValueError(
                f"{asker}: Expected at least 2 data that are not masked; got {len(kept)}"
            )
        features = feature_names(outline.rows)
        runs = cls(draws, params, outline, parts, kept, datum[kept], features)
        runs.check_finite(codes[kept], "guide draws")
        return runs

    def draw(self, rng_key: Key[Array, ""]) -> DataRun:
        """One run per minibatch."""
        return DataRun(rng_key, self)

    def repeat(
        self, rng_key: Key[Array, ""], quantity: Quantity, times: int
    ) -> Float[np.ndarray, "times data ..."]:
        """A quantity of each datum in so many runs; in two, where nothing in it is random."""
        evaluate = self.per_minibatch(quantity)
        keys = jax.random.split(rng_key, times)
        values = [self.per_datum(evaluate(key)) for key in keys[:2]]
        if not np.array_equal(*values):
            more = with_progress(keys[2:], total=times - 2, label=self.draws.asker)
            values += [self.per_datum(evaluate(key)) for key in more]
        return np.stack(values)

    def per_minibatch(self, quantity: Quantity) -> Callable[[Key[Array, ""]], list[Any]]:
        """A function of a key to the quantity in a run of each minibatch, compiled once."""
        return _per_minibatch(self.draws, self.params, self.minibatches, quantity)

    def per_datum(self, parts: Sequence[Any]) -> Any:
        """Arrays of the rows of each minibatch, for the data that count."""
        return jax.tree.map(lambda *rows: np.concatenate(rows)[self.kept], *parts)

    def check_finite(self, codes: Float[np.ndarray, "... data features"], source: str) -> None:
        """Refuse codes that are not finite, of what ``source`` says."""
        check_finite(np.isfinite(codes), self.features, asker=self.draws.asker, source=source)


class Codes(NamedTuple):
    """A code of each datum from the guide, and one drawn afresh from the model."""

    posterior: Float[np.ndarray, "data features"]
    prior: Float[np.ndarray, "data features"]


@dataclass(frozen=True, eq=False)
class DataRun:
    """A run of each minibatch, which the key determines.

    Attributes:
        rng_key: what is drawn with.
        runs: what is run.
    """

    rng_key: Key[Array, ""]
    runs: DataRuns

    def per_minibatch(self, quantity: Quantity) -> list[Any]:
        """A quantity of each minibatch."""
        return self.runs.per_minibatch(quantity)(self.rng_key)

    @property
    def codes(self) -> Codes:
        """The codes of the data that count.

        Raises:
            ValueError: where one of them is not finite.
        """
        codes = Codes(*self.runs.per_datum(self.per_minibatch(_codes)))
        self.runs.check_finite(codes.posterior, "guide draws")
        self.runs.check_finite(codes.prior, "model draws")
        return codes


def check_finite(
    is_finite: Bool[np.ndarray, "... data features"],
    features: Sequence[str],
    *,
    asker: str,
    source: str,
) -> None:
    """Refuse codes that hold nan or infinity.

    Args:
        is_finite: whether they do not.
        features: the names of their features.
        asker: who needs them, for messages.
        source: what they come from, for messages: "guide draws" or the like.

    Raises:
        ValueError: naming the features.
    """
    unfit = ~is_finite.reshape(-1, is_finite.shape[-1])
    if unfit.any():
        names = [features[feature] for feature in np.flatnonzero(unfit.any(0)).tolist()]
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


def minibatches(asker: str, outline: Outline) -> list[Minibatch]:
    """Minibatches of the subsampled plate that cover the data, the last one filled from the start.

    Args:
        asker: who needs them, for messages.
        outline: what is known of a run of any minibatch.

    Raises:
        ValueError: for several subsampled plates.
    """
    plates = outline.run.model[outline.names[0]].plates
    subsampled = [plate for plate in plates if plate.size != plate.full_size]
    if not subsampled:
        return [{}]
    if len(subsampled) > 1:
        raise ValueError(
            f"{asker} runs all minibatches of one plate; got several that are subsampled, "
            f"{[plate.name for plate in subsampled]}: leave all but one whole"
        )
    (plate,) = subsampled
    return [
        {plate.name: jnp.arange(start, start + plate.size) % plate.full_size}
        for start in range(0, plate.full_size, plate.size)
    ]


def first_of_each(
    datum: Int[np.ndarray, " rows"], counts: Bool[np.ndarray, " rows"]
) -> Int[np.ndarray, " data"]:
    """The first row that counts of each datum, in the order of the data."""
    rows = np.flatnonzero(counts)
    _, first = np.unique(datum[rows], return_index=True)
    return rows[first]


def counts_of(rows: Rows) -> Bool[Array, " rows"]:
    """Whether a row is not masked."""
    return jnp.ones(len(rows.values), bool) if rows.weights is None else rows.weights > 0


def _find_out(
    draw: Draw,
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"], Float[Array, "rows features"]]:
    rows = draw.group.posterior
    return datum_of_rows(draw.group), counts_of(rows), rows.values


def _codes(draw: Draw) -> tuple[Float[Array, "rows features"], Float[Array, "rows features"]]:
    return draw.group.posterior.values, draw.group.prior(1).values


def _per_minibatch(
    draws: FreshDraws,
    params: Mapping[str, Any],
    minibatches: Sequence[Minibatch],
    quantity: Quantity,
) -> Callable[[Key[Array, ""]], list[Any]]:
    @shared_jit
    def run(rng_key: Key[Array, ""], params: Mapping[str, Any], minibatch: Minibatch) -> Any:
        with numpyro.validation_enabled(False):
            return quantity(draws.draw(rng_key, params, minibatch))

    def run_all(rng_key: Key[Array, ""]) -> list[Any]:
        keys = jax.random.split(rng_key, len(minibatches))
        return [
            jax.device_get(run(key, params, minibatch))
            for key, minibatch in zip(keys, minibatches, strict=True)
        ]

    return run_all

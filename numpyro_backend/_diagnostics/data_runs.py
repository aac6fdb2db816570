# SPDX-License-Identifier: MIT
"""Runs of guide and model that go over all data, in JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._traces.fresh_draws import (
    Draw,
    FreshDraws,
    Minibatch,
    Outline,
    datum_of_rows,
    set_up,
)
from pyro_infovae._core.data_runs import (
    DataRuns,
    Quantity,
    check_all_drawn,
    check_density,
    feature_names,
    first_of_each,
)
from pyro_infovae._core.data_runs import minibatches as _minibatches
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import Plate, Site


def run_over_data(
    caller: str,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sites: Iterable[str] | None,
) -> DataRuns:
    """Find out about plates and masks by a run over all data.

    Raises:
        ValueError: for latents that cannot be selected, or are in several stacks of plates; for a
            guide that does not draw one code per datum; for several subsampled plates; for fewer
            than 2 data that count; for codes that are not finite.
    """
    kwargs = dict(kwargs)
    set_up(rng_key, guide, args, kwargs)
    draws = FreshDraws(caller, model, guide, args, kwargs, sites)
    outline = draws.outline(rng_key, params)
    for name in outline.names:
        site = outline.run.model[name]
        check_batch_shape(caller, site, site.plates)
    parts = minibatches(caller, outline)

    def run(quantity: Quantity) -> Callable[[Key[Array, ""]], list[Any]]:
        evaluate = shared_jit(_without_validation(draws, quantity))

        def over_all(rng_key: Key[Array, ""]) -> list[Any]:
            keys = jax.random.split(rng_key, len(parts))
            return [
                jax.device_get(evaluate(key, params, part))
                for key, part in zip(keys, parts, strict=True)
            ]

        return over_all

    datum, counts, codes = map(np.concatenate, zip(*run(_look)(rng_key), strict=True))
    kept = first_of_each(datum, counts)
    runs = DataRuns(
        caller,
        run,
        array=np.asarray,
        first=outline,
        num_data=outline.rows.num_data,
        kept=kept,
        datum=datum[kept],
        features=feature_names(outline.rows.latents),
    )
    runs.check_finite(codes[kept], "guide draws")
    return runs


def minibatches(caller: str, outline: Outline) -> list[Minibatch]:
    """Minibatches that cover the data; a single empty one where no plate is subsampled."""
    plates = outline.run.model[outline.names[0]].plates
    return [
        {name: jnp.asarray(rows) for name, rows in part.items()}
        for part in _minibatches(caller, [(p.name, p.size, p.full_size) for p in plates])
    ]


def codes(draw: Draw) -> tuple[Float[Array, "rows features"], Float[Array, "rows features"]]:
    """A code of each datum from the guide, and one drawn afresh from the model."""
    return draw.group.posterior.values, draw.group.prior(1).values


def _look(
    draw: Draw,
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"], Float[Array, "rows features"]]:
    rows = draw.group.posterior
    return datum_of_rows(draw.group), rows.dense_weights > 0, rows.values


def _without_validation(draws: FreshDraws, quantity: Quantity) -> Callable[..., Any]:
    def evaluate(rng_key: Key[Array, ""], params: Mapping[str, Any], minibatch: Minibatch) -> Any:
        with numpyro.validation_enabled(False):
            return quantity(draws.draw(rng_key, params, minibatch))

    return evaluate


def check_densities(caller: str, outline: Outline) -> None:
    """Refuse latents whose density in guide and prior is not known row by row.

    Raises:
        ValueError: naming the site.
    """
    run = outline.run
    check_all_drawn(caller, run, outline.names)
    for name in outline.names:
        check_density(caller, name, run.guide[name])
        check_batch_shape(caller, run.guide[name], run.model[name].plates)


def check_batch_shape(caller: str, site: Site, plates: Iterable[Plate]) -> None:
    """Refuse a site that does not have a value per datum.

    Args:
        caller: who needs it, for messages.
        site: a latent, as drawn or replayed.
        plates: the plates of the data.

    Raises:
        ValueError: naming the site.
    """
    sizes = {plate.dim: plate.size for plate in plates}
    expected = tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))
    got = site.value.shape[: site.value.ndim - site.event_dim]
    if got != expected:
        raise ValueError(
            f"{caller}: Expected the guide to draw '{site.name}' with batch shape {expected}, as "
            f"the model does; got {got}: draw a code per datum, in the same plates"
        )

# SPDX-License-Identifier: MIT
"""What the code knows of the data, from the guide's own densities: no critic."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.nn import logsumexp
from jaxtyping import Bool, Float, Int, Key, Shaped
from numpyro.distributions import Distribution

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._diagnostics.data_runs import (
    check_densities,
    minibatches,
)
from numpyro_backend._traces.fresh_draws import (
    Draw,
    FreshDraws,
    Minibatch,
    datum_of_rows,
    log_prob,
    set_up,
)
from pyro_infovae._core import information
from pyro_infovae._core.data_runs import first_of_each
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.information import AggregatedPosterior
from pyro_infovae._core.programs import Program

_CALLER = "aggregated_posterior"
_ELEMENTS_PER_CHUNK = 2**23


@documented(information.AGGREGATED_POSTERIOR, scored_data="a minibatch")
def aggregated_posterior(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> AggregatedPosterior:
    """Split the KL of the guide into what the code knows of the data, and how far it is off.

    Example:
        $programs
        >>> x = jnp.array([-90.0, -30.0, 30.0, 90.0])
        >>> report = aggregated_posterior(key, {}, model, guide, x)
        >>> round(report.mutual_information, 4)  # log 4
        1.3863
    """
    information.check_chunks(num_samples, chunk_size)
    set_up(rng_key, guide, args, kwargs)
    draws = FreshDraws(_CALLER, model, guide, args, kwargs, sites)
    outline = draws.outline(rng_key, params)
    check_densities(_CALLER, outline)
    parts = minibatches(_CALLER, outline)
    keys = jax.random.split(rng_key, (num_samples, len(parts)))
    draw_codes = shared_jit(partial(_draw_codes, draws))
    runs = [
        [draw_codes(key, params, rows) for key, rows in zip(row, parts, strict=True)]
        for row in keys
    ]
    _check_conditionals(draws, keys[:2], params, parts, runs[0])
    posterior, prior, counts, datum = (_by_run(runs, name) for name in _Codes._fields[1:])
    kept = first_of_each(datum[0], counts[0])
    is_kept = np.isin(np.arange(len(counts[0])), kept)
    values = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(codes.values for run in runs for codes in run)
    )
    log_sum = shared_jit(partial(_log_sum_over_data, draws, chunk_size))
    conditions = zip(keys[0], parts, np.split(is_kept, len(parts)), strict=True)
    mixture = np.logaddexp.reduce(
        [log_sum(key, params, *part, values) for key, *part in conditions]
    )
    aggregated = mixture.reshape(posterior.shape) - math.log(len(kept))
    return AggregatedPosterior.of(posterior[:, kept], prior[:, kept], aggregated[:, kept])


class _Codes(NamedTuple):
    """The codes of one minibatch, a row per datum.

    Attributes:
        values: the draws, by site.
        log_posterior: the density of each code given its own datum.
        log_prior: its density under its prior.
        counts: whether the datum is not masked.
        datum: which datum each code belongs to.
    """

    values: dict[str, Float[Array, " rows *event"]]
    log_posterior: Float[Array, " rows"]
    log_prior: Float[Array, " rows"]
    counts: Bool[Array, " rows"]
    datum: Int[Array, " rows"]


def _draw_codes(
    draws: FreshDraws, rng_key: Key[Array, ""], params: Mapping[str, Any], minibatch: Minibatch
) -> _Codes:
    draw = draws.draw(rng_key, params, minibatch)
    conditionals = _conditionals(draw)
    posterior, prior = (
        reduce(operator.add, (log_prob(trace[name]) for name in draw.group.names))
        for trace in (draw.guide, draw.model)
    )
    return _Codes(
        values={
            name: draw.guide[name]["value"].reshape(-1, *fn.event_shape)
            for name, fn in conditionals.items()
        },
        log_posterior=posterior.reshape(-1),
        log_prior=prior.reshape(-1),
        counts=draw.group.posterior.dense_weights > 0,
        datum=datum_of_rows(draw.group),
    )


def _log_prob_of(
    draws: FreshDraws,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    minibatch: Minibatch,
    values: Mapping[str, Float[Array, " rows *event"]],
) -> dict[str, Float[Array, "*plates"]]:
    """The density of each code given its own datum, by site, in a run that may be another."""
    conditionals = _conditionals(draws.draw(rng_key, params, minibatch))
    return {
        name: fn.log_prob(values[name].reshape(fn.shape())) for name, fn in conditionals.items()
    }


def _log_sum_over_data(
    draws: FreshDraws,
    chunk_size: int | None,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    minibatch: Minibatch,
    is_kept: Bool[Array, " rows"],
    values: Mapping[str, Float[Array, " codes *event"]],
) -> Float[Array, " codes"]:
    """The log of the sum of each code's densities given the data of a minibatch that are kept."""
    conditionals = _conditionals(draws.draw(rng_key, params, minibatch))
    features = sum(math.prod(fn.event_shape) for fn in conditionals.values())

    def log_sum(code: Mapping[str, Float[Array, "*event"]]) -> Float[Array, ""]:
        terms = reduce(operator.add, (fn.log_prob(code[n]) for n, fn in conditionals.items()))
        return logsumexp(terms.reshape(-1), where=is_kept)

    size = chunk_size or max(1, _ELEMENTS_PER_CHUNK // (is_kept.size * features))
    return jax.lax.map(log_sum, values, batch_size=size)


def _conditionals(draw: Draw) -> dict[str, Distribution]:
    """The distributions q(z | x) that a run of the guide has drawn from, by site."""
    return {name: draw.guide[name]["fn"] for name in draw.group.names}


def _check_conditionals(
    draws: FreshDraws,
    keys: Key[Array, "2 minibatches"],
    params: Mapping[str, Any],
    minibatches: Sequence[Minibatch],
    run: Sequence[_Codes],
) -> None:
    """Refuse q(z | x) that another run would not have drawn from."""
    log_prob_of = shared_jit(partial(_log_prob_of, draws))
    for *both, rows, codes in zip(*keys, minibatches, run, strict=True):
        first, second = (log_prob_of(key, params, rows, codes.values) for key in both)
        for name in first:
            if not np.allclose(first[name], second[name], rtol=1e-4, atol=1e-4):
                raise ValueError(
                    f"{_CALLER}: q({name} | x) changes from run to run, so that it is not a "
                    "function of the data alone: it depends on another latent that the guide "
                    "draws, or on dropout (switch it off)"
                )


def _by_run(runs: Sequence[Sequence[_Codes]], name: str) -> Shaped[np.ndarray, "draws rows"]:
    return np.stack([np.concatenate([getattr(codes, name) for codes in run]) for run in runs])

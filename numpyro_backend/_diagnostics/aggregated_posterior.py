# SPDX-License-Identifier: MIT
"""What the code knows of the data, from the guide's own densities: no critic."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.nn import logsumexp
from jaxtyping import Bool, Float, Int, Key, Shaped
from numpyro.distributions import Distribution

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._diagnostics.data_runs import counts_of, first_of_each, minibatches
from numpyro_backend._traces.data_checks import check_all_drawn, check_densities
from numpyro_backend._traces.fresh_draws import (
    Draw,
    FreshDraws,
    Minibatch,
    datum_of_rows,
    log_prob,
    set_up,
)
from numpyro_backend._traces.runs import Program

_ASKER = "aggregated_posterior"
_ELEMENTS_PER_CHUNK = 2**23


@dataclass(frozen=True)
class AggregatedPosterior:
    """The divergence of guide and prior, taken apart; all in nats per datum.

    Attributes:
        mutual_information: I(x; z), between 0 and log ``num_data``.
        mutual_information_error: its standard error, over the draws of z.
        kl: E KL(q(z | x) ‖ p(z)), the sum of the two others.
        kl_error: its standard error.
        marginal_kl: KL(q(z) ‖ p(z)).
        marginal_kl_error: its standard error.
        num_data: the data that count.
    """

    mutual_information: float
    mutual_information_error: float
    kl: float
    kl_error: float
    marginal_kl: float
    marginal_kl_error: float
    num_data: int


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
    r"""Split the KL of the guide into what the code knows of the data, and how far it is off.

    .. math::
        E_x \, \mathrm{KL}(q(z \mid x) \| p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \| p(z)),
        \qquad q(z) = \frac1N \sum_{j=1}^N q(z \mid x_j)

    q(z) is evaluated in full, all N data for each draw of z, so nothing but the draws is random:
    the estimates are unbiased. They are about these N data alone: a code that tells all of them
    apart has I = log N nats, however much more it could tell of further data. A plate with a
    ``subsample_size`` is run over all its minibatches.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        num_samples: draws of z per datum, at least 2.
        sites: the latents, by name, in one stack of plates; their joint distribution counts. By
            default every reparameterised latent in plates.
        chunk_size: codes to be scored at once under the conditionals of a minibatch; by default
            so many that no more than 2²³ numbers are held.
        **kwargs: keyword arguments of both.

    Returns:
        The three terms and their standard errors.

    Raises:
        ValueError: for a point mass in the guide, a latent of the model that the guide does not
            draw, a conditional that changes from run to run (it depends on other latents, or on
            dropout), a guide that does not draw one code per datum, or more than one subsampled
            plate.

    References:
        Hoffman, Johnson, *ELBO surgery: yet another way to carve up the variational evidence lower
        bound*, NIPS 2016 workshop on approximate Bayesian inference.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> x = jnp.array([-9.0, -3.0, 3.0, 9.0])
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x, 0.1))
        >>> report = aggregated_posterior(jax.random.key(0), {}, model, guide, x)
        >>> round(report.mutual_information, 4)  # log 4
        1.3863
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")
    set_up(rng_key, guide, args, kwargs)
    draws = FreshDraws(_ASKER, model, guide, args, kwargs, sites)
    outline = draws.outline(rng_key, params)
    check_all_drawn(_ASKER, outline)
    check_densities(_ASKER, outline)
    parts = minibatches(_ASKER, outline)
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
    return AggregatedPosterior(
        *_mean_and_error((posterior - aggregated)[:, kept]),
        *_mean_and_error((posterior - prior)[:, kept]),
        *_mean_and_error((aggregated - prior)[:, kept]),
        num_data=len(kept),
    )


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
        counts=counts_of(draw.group.posterior),
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
                    f"{_ASKER}: q({name} | x) changes from run to run, so that it is not a "
                    "function of the data alone: it depends on another latent that the guide "
                    "draws, or on dropout (switch it off)"
                )


def _by_run(runs: Sequence[Sequence[_Codes]], name: str) -> Shaped[np.ndarray, "draws rows"]:
    return np.stack([np.concatenate([getattr(codes, name) for codes in run]) for run in runs])


def _mean_and_error(terms: Float[np.ndarray, "draws data"]) -> tuple[float, float]:
    """The mean, and its standard error over the draws."""
    variance = terms.var(0, ddof=1).mean() / terms.size
    return float(terms.mean()), float(np.sqrt(variance))

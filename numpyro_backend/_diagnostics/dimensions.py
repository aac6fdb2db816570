# SPDX-License-Identifier: MIT
"""Which dimensions of the code tell the data apart, and how far each is from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from numpyro_backend._diagnostics.data_runs import check_densities, run_over_data
from numpyro_backend._traces.fresh_draws import Draw, FreshDraws, log_prob
from numpyro_backend._traces.recording import Message, undecorated
from pyro_infovae._core import dimensions
from pyro_infovae._core.dimensions import ActiveUnits, KLByDimension
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import flatten, normal_rows
from pyro_infovae._core.sites import Run


@documented(dimensions.ACTIVE_UNITS)
def active_units(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    threshold: float = 0.01,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> ActiveUnits[np.ndarray]:
    """Count the latent dimensions whose posterior mean depends on the data.

    Example:
        $programs
        >>> x = jnp.array([-3.0, -1.0, 1.0, 3.0])
        >>> units = active_units(key, {}, model, guide, x)
        >>> units.num_active, units.variance.round(4)
        (1, array([1.6667], dtype=float32))
    """
    dimensions.check_active_units(threshold, num_samples)
    first_key, means_key = jax.random.split(rng_key)
    runs = run_over_data("active_units", first_key, params, model, guide, args, kwargs, sites)
    keys = jax.random.split(means_key, num_samples)
    return dimensions.ask_active_units(
        runs, _means, keys, num_samples=num_samples, threshold=threshold
    )


@documented(dimensions.KL_BY_DIMENSION)
def kl_by_dimension(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> KLByDimension[np.ndarray]:
    """Measure KL(q(z | x) ‖ p(z)) of each datum and each latent dimension.

    Example:
        $programs
        >>> x = jnp.array([-1.0, 1.0, 2.0])
        >>> kl_by_dimension(key, {}, model, guide, x).terms.round(4)
        array([[0.2216],
               [0.2216],
               [0.5966]], dtype=float32)
    """
    caller = "kl_by_dimension"
    dimensions.check_kl_by_dimension(num_samples)
    first_key, terms_key = jax.random.split(rng_key)
    runs = run_over_data(caller, first_key, params, model, guide, args, kwargs, sites)
    check_densities(caller, runs.first)
    draws = FreshDraws(caller, model, guide, args, kwargs, sites)
    unsplit = jax.eval_shape(lambda key: _unsplit(draws.draw(key, params)), first_key)
    return dimensions.ask_kl_by_dimension(
        runs,
        _terms_and_sum,
        jax.random.split(terms_key, num_samples),
        num_samples=num_samples,
        unsplit=dict(unsplit.reasons),
    )


def _means(draw: Draw) -> Float[Array, "rows features"]:
    """What has the mean E[z | x] in every run, and varies as little as is known."""
    drawn = draw.group.posterior.latents
    return jnp.concatenate([_location(name, draw.run, drawn[name]) for name in drawn], -1)


def _location(
    name: str, run: Run, drawn: Float[Array, "rows features"]
) -> Float[Array, "rows features"]:
    if run.guide[name].event_dim != run.model[name].event_dim:
        # The guide's rows are not the model's: it draws all data at once, say.
        return drawn
    normal = normal_rows(name, run.guide, run)
    return drawn if normal is None else normal[0]


class _Divergence(NamedTuple):
    """The divergence of one latent: by dimension, nan where it does not split, and in all."""

    terms: Float[Array, "rows features"]
    sum: Float[Array, " rows"]


def _terms_and_sum(draw: Draw) -> Float[Array, "rows features_and_sum"]:
    run = draw.run
    latents = [name for name, site in run.model.items() if site.is_latent]
    same_order = latents == [name for name in run.guide if name in latents]
    divergences = [
        (_closed_form(name, run) if same_order else None) or _sampled(name, draw)
        for name in draw.group.names
    ]
    total = sum(divergence.sum for divergence in divergences)
    return jnp.column_stack([*(divergence.terms for divergence in divergences), total])


def _closed_form(name: str, run: Run) -> _Divergence | None:
    posterior = normal_rows(name, run.guide, run)
    prior = normal_rows(name, run.model, run)
    if posterior is None or prior is None:
        return None
    ratio = jnp.square(posterior[1] / prior[1])
    shift = jnp.square((posterior[0] - prior[0]) / prior[1])
    terms = 0.5 * (ratio + shift - 1 - jnp.log(ratio))
    return _Divergence(terms, terms.sum(-1))


def _sampled(name: str, draw: Draw) -> _Divergence:
    posterior, prior = draw.guide[name], draw.model[name]
    value, fn = prior["value"], prior["fn"]
    shape = fn.batch_shape
    total = flatten(log_prob(posterior) - log_prob(prior), 0, shape)
    if _num_features(prior) == 1:
        terms = total
    elif _why_unsplit(name, draw):
        terms = jnp.full_like(flatten(value, fn.event_dim, shape), math.nan)
    else:
        terms = flatten(_log_probs(posterior) - _log_probs(prior), fn.event_dim, shape)
    return _Divergence(terms, total[:, 0])


def _num_features(msg: Message) -> int:
    return math.prod(msg["fn"].event_shape)


def _log_probs(msg: Message) -> Float[Array, "*batch_and_event"]:
    """The log density of each dimension."""
    return log_prob({**msg, "fn": undecorated(msg["fn"])})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Unsplit:
    """Why the densities of latents do not split, with their names."""

    reasons: tuple[tuple[str, str], ...] = field(metadata={"static": True})


def _unsplit(draw: Draw) -> _Unsplit:
    reasons = {name: _why_unsplit(name, draw) for name in draw.group.names}
    return _Unsplit(tuple((name, reason) for name, reason in reasons.items() if reason))


def _why_unsplit(name: str, draw: Draw) -> str | None:
    """Why the log density of a latent is no sum over its dimensions, or None if it is."""
    for msg in (draw.guide[name], draw.model[name]):
        fn = undecorated(msg["fn"])
        if fn.event_shape and _num_features(msg) > 1:
            return f"the density of {type(fn).__name__} does not split by dimension"
    return None

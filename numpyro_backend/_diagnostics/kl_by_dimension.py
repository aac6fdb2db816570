# SPDX-License-Identifier: MIT
"""How far the code of each datum is from the prior, dimension by dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from numpyro_backend._diagnostics.data_runs import DataRuns
from numpyro_backend._traces.data_checks import check_all_drawn, check_densities
from numpyro_backend._traces.fresh_draws import Draw, log_prob
from numpyro_backend._traces.recording import Message
from numpyro_backend._traces.runs import Program, Run
from numpyro_backend.rows import flatten, normal_rows
from numpyro_backend.sites import is_latent, undecorated

_ASKER = "kl_by_dimension"


@dataclass(frozen=True, eq=False)
class KLByDimension:
    """KL(q(z | x) ‖ p(z)) of each datum, and its terms; all in nats.

    Attributes:
        terms: the term of each datum and dimension; nan for the dimensions of a latent whose
            density does not split.
        per_datum: KL of each datum, all latents together.
        standard_error: that of ``per_datum``, over the draws of z; 0 where nothing was drawn.
        datum: which datum each row is, in increasing order; masked ones are left out.
        dimensions: the name of each dimension: its site's, and a number where there are several.
        unsplit: why the density does not split, by site name.
    """

    terms: Float[np.ndarray, "data dims"]
    per_datum: Float[np.ndarray, " data"]
    standard_error: Float[np.ndarray, " data"]
    datum: Int[np.ndarray, " data"]
    dimensions: tuple[str, ...]
    unsplit: dict[str, str]

    @property
    def per_dimension(self) -> Float[np.ndarray, " dims"]:
        """The average over the data of each dimension's term."""
        return self.terms.mean(0)

    @property
    def mean(self) -> float:
        """The average over the data."""
        return float(self.per_datum.mean())

    @property
    def mean_error(self) -> float:
        """The standard error of the average, over the draws of z."""
        return float(np.linalg.norm(self.standard_error)) / len(self.standard_error)


def kl_by_dimension(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> KLByDimension:
    r"""Measure KL(q(z | x) ‖ p(z)) of each datum and each latent dimension.

    .. math::
        \mathrm{KL}(q(z \mid x_i) \| p(z)) = \sum_u E_q \left[
        \log \frac{q(z_u \mid x_i)}{p(z_u)} \right]

    A dimension whose term is 0 for all data has collapsed to the prior. The terms are in closed
    form where both conditionals are diagonal normals, and guide and model draw the latents in the
    same order; elsewhere they are averages of the log ratio over draws. A density that does not
    split by dimension, such as that of a multivariate normal, has a term per datum only. Latents
    that depend on others count given these. A plate with a ``subsample_size`` is run over all its
    minibatches.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        num_samples: runs to average over where not all is known in closed form, at least 2.
        sites: the latents, by name, in one stack of plates. By default every reparameterised
            latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The terms, and their sum for each datum.

    Raises:
        ValueError: for a point mass in the guide, a guide that does not draw one code per datum, a
            latent of the model that the guide does not draw, fewer than 2 data, codes that are not
            finite, or more than one subsampled plate.

    References:
        Lucas, Tucker, Grosse, Norouzi, *Don't Blame the ELBO! A Linear VAE Perspective on
        Posterior Collapse*, arXiv 1911.02469.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> x = jnp.array([-1.0, 1.0, 2.0])
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ...         numpyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         loc = jnp.stack([x, 0 * x], -1)
        ...         numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        >>> kl_by_dimension(jax.random.key(0), {}, model, guide, x).terms
        array([[0.5, 0. ],
               [0.5, 0. ],
               [2. , 0. ]], dtype=float32)
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    first_key, terms_key = jax.random.split(rng_key)
    runs = DataRuns.of(_ASKER, first_key, params, model, guide, args, kwargs, sites)
    check_all_drawn(_ASKER, runs.outline)
    check_densities(_ASKER, runs.outline)
    draws = runs.repeat(terms_key, _terms_and_sum, num_samples)
    unsplit = jax.eval_shape(lambda key: _unsplit(runs.draws.draw(key, params)), first_key)
    return KLByDimension(
        terms=draws.mean(0)[:, :-1],
        per_datum=draws.mean(0)[:, -1],
        standard_error=draws[:, :, -1].std(0, ddof=1) / math.sqrt(len(draws)),
        datum=runs.datum,
        dimensions=runs.features,
        unsplit=dict(unsplit.reasons),
    )


class _Divergence(NamedTuple):
    """The divergence of one latent: by dimension, nan where it does not split, and in all."""

    terms: Float[Array, "rows features"]
    sum: Float[Array, " rows"]


def _terms_and_sum(draw: Draw) -> Float[Array, "rows features_and_sum"]:
    run = draw.run
    latents = [name for name, site in run.model.items() if is_latent(site)]
    same_order = latents == [name for name in run.guide if name in latents]
    divergences = [
        (_closed_form(name, run) if same_order else None) or _sampled(name, draw)
        for name in draw.group.names
    ]
    total = sum(divergence.sum for divergence in divergences)
    return jnp.column_stack([*(divergence.terms for divergence in divergences), total])


def _closed_form(name: str, run: Run) -> _Divergence | None:
    posterior = normal_rows(name, run.guide, run.model)
    prior = normal_rows(name, run.model, run.model)
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

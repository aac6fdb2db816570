# SPDX-License-Identifier: MIT
r"""How probable the data are under a model: importance-weighted log p(x), row by row."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key
from scipy.special import logsumexp  # type: ignore[import-untyped]

from numpyro_backend._traces.fresh_draws import set_up
from numpyro_backend._traces.importance_weights import ImportanceSampler
from numpyro_backend._traces.runs import Program
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from pyro_infovae._core.arviz import load_arviz

__all__ = ["Evidence", "log_evidence"]

RELIABLE_PARETO_K = 0.7


@dataclass(frozen=True, eq=False)
class Evidence:
    r"""An importance-sampling estimate of log p(x), in nats, and how far to believe it.

    Attributes:
        log_weights: :math:`\log w_{s,i} = \log p(x_i, z_{s,i}) - \log q(z_{s,i})`, of shape
            (samples, \*rows).

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, *Pareto Smoothed Importance Sampling*,
        arXiv 1507.02646.
    """

    log_weights: Float[np.ndarray, "samples ..."]

    @cached_property
    def log_evidence(self) -> Float[np.ndarray, "*rows"]:
        r""":math:`\log \frac{1}{S} \sum_s w_{s,i}`, in nats."""
        return logsumexp(self.log_weights, axis=0) - math.log(len(self.log_weights))

    @property
    def total(self) -> Float[np.ndarray, ""]:
        """The log evidence of all rows together, in nats."""
        return self.log_evidence.sum()

    @cached_property
    def effective_sample_size(self) -> Float[np.ndarray, "*rows"]:
        r""":math:`(\sum_s w_{s,i})^2 / \sum_s w_{s,i}^2`, between 1 and the number of samples."""
        log_sum, log_sum_of_squares = (logsumexp(c * self.log_weights, axis=0) for c in (1, 2))
        return np.exp(2 * log_sum - log_sum_of_squares)

    @cached_property
    def standard_error(self) -> Float[np.ndarray, "*rows"]:
        r"""That of the log evidence, :math:`\mathrm{sd}(w_i) / (\sqrt{S} \, \bar w_i)`, in nats.

        To be believed only where :attr:`pareto_k` is below 0.5: beyond, w has no variance.
        """
        num_samples = len(self.log_weights)
        squared_variation = np.maximum(num_samples / self.effective_sample_size - 1, 0)
        return np.sqrt(squared_variation / (num_samples - 1))

    @cached_property
    def pareto_k(self) -> Float[np.ndarray, "*rows"]:
        """The shape of the tail of the weights, above 0.7 where the estimate is not to be believed.

        It is infinite where there are too few weights to fit a tail, and 0 where there is none, for
        the largest weights agree to a thousandth of a nat.

        Raises:
            ModuleNotFoundError: where ArviZ, which fits it, is not installed.
        """
        rows = np.asarray(self.log_weights, float).reshape(len(self.log_weights), -1)
        psislw = _psislw()
        shapes = [_pareto_k(row, psislw) for row in rows.T]
        return np.asarray(shapes, self.log_weights.dtype).reshape(self.log_weights.shape[1:])


def log_evidence(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    elbo: TraceHamiltonian_ELBO | None = None,
    **kwargs: Any,
) -> Evidence:
    r"""Estimate log p(x) by importance sampling from a guide.

    .. math::
        \log p(x_i) \approx \log \frac{1}{S} \sum_{s=1}^S
        \frac{p(x_i, z_{s,i})}{q(z_{s,i} \mid x_i)}, \qquad z_{s,i} \sim q

    A row is an index of the plates that *all* sites of model and guide are in; plates within are
    summed over. Where a latent is in no plate, or the guide's latents are not independent, rows
    cannot be told apart: there is one weight for the whole data set, and results have shape ().

    The estimate of each row is that of the row by itself: the subsampling factor N / B, as any
    ``handlers.scale``, is left out. A minibatch is drawn once; ``handlers.substitute`` with the
    rows of the plate under its name determines which. Masked rows have log evidence 0. In
    expectation it is a lower bound, which rises with the number of samples.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        num_samples: the number S of draws per row.
        chunk_size: most draws per run, mapped over by :func:`jax.vmap`; by default so many that no
            site holds more than 2²³ numbers. 1 runs the programs as they are, draw by draw, which
            is for programs that cannot be vectorised. The draws are the same.
        elbo: draws from ``elbo.refine(model, guide)`` in the guide's place. Its bound is tighter;
            whether its weights are better too, ``effective_sample_size`` tells.
        **kwargs: keyword arguments of both.

    Returns:
        The estimate with its reliability; a warning says so where it is not to be believed, if
        ArviZ is installed to tell.

    Raises:
        ValueError: naming the site: for a latent that only one of model and guide draws, a point
            mass in the guide, or a site outside of a subsampled plate; for a number out of range.

    References:
        Burda, Grosse, Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.5, -1.0, 2.0])
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> key = jax.random.key(0)
        >>> log_evidence(key, {}, model, guide, x, num_samples=100).log_evidence.round(4)
        array([-1.328 , -1.5155, -2.2655], dtype=float32)
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")
    layout_key, draws_key = jax.random.split(rng_key)
    set_up(layout_key, guide, args, kwargs)
    if elbo is not None:
        guide = elbo.refine(model, guide)
    sampler = ImportanceSampler(params, model, guide, args, kwargs)
    layout = sampler.layout(layout_key)
    keys = jax.random.split(draws_key, num_samples)
    evidence = Evidence(np.asarray(sampler.log_weights(keys, layout, chunk_size)))
    _warn_if_unreliable(evidence)
    return evidence


def _pareto_k(log_weights: Float[np.ndarray, " samples"], psislw: Callable[..., Any]) -> float:
    """The shape of a generalised Pareto distribution fitted to the tail of the weights."""
    peak = log_weights.max()
    if not math.isfinite(peak):
        return math.nan if math.isnan(peak) else math.inf
    log_weights = np.sort(log_weights - peak)
    tail = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    cutoff = max(log_weights[-tail - 1], math.log(sys.float_info.min))
    if cutoff > -1e-3:
        return 0.0
    if np.count_nonzero(log_weights > cutoff) <= 4:
        return math.inf
    _, shape = psislw(log_weights)
    return float(shape)


def _psislw() -> Callable[..., Any]:
    """ArviZ's function of log weights to smoothed ones and their Pareto k."""
    arviz = load_arviz("Evidence.pareto_k")
    if hasattr(arviz, "psislw"):
        return arviz.psislw
    array_stats = importlib.import_module("arviz_stats.base").array_stats

    def psislw(log_weights: Float[np.ndarray, " samples"]) -> tuple[Any, Any]:
        # Since ArviZ 1.0 it takes log likelihoods, the negative of log weights, and refuses to fit
        # a tail that is too short, or all of one weight.
        try:
            return array_stats.psislw(-log_weights)
        except ValueError:
            return log_weights, math.inf if len(log_weights) < 25 else 0.0

    return psislw


def _warn_if_unreliable(evidence: Evidence) -> None:
    is_nan = np.isnan(evidence.log_evidence)
    if is_nan.any():
        warnings.warn(
            f"log_evidence: nan in {int(is_nan.sum())} of {is_nan.size} rows: the model's density "
            "is nan, or the elbo's flow diverged; lower its step_size",
            stacklevel=3,
        )
    try:
        pareto_k = evidence.pareto_k
    except ModuleNotFoundError:
        return
    unreliable = pareto_k[pareto_k > RELIABLE_PARETO_K]
    if len(unreliable) > 0:
        warnings.warn(
            f"log_evidence: Pareto k > {RELIABLE_PARETO_K} in {len(unreliable)} of {pareto_k.size} "
            f"rows, up to {float(unreliable.max()):.2f}: do not believe their estimates; draw more "
            "samples, or from a guide nearer to the posterior",
            stacklevel=3,
        )

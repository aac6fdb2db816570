# SPDX-License-Identifier: MIT
r"""How probable the data are under a model: importance-weighted log p(x), row by row."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float

A = TypeVar("A", bound=Any)

RELIABLE_PARETO_K = 0.7


@dataclass(frozen=True, eq=False)
class Evidence(Generic[A]):
    r"""An importance-sampling estimate of log p(x), in nats, and how far to believe it.

    Attributes:
        log_weights: :math:`\log w_{s,i} = \log p(x_i, z_{s,i}) - \log q(z_{s,i})`, of shape
            (samples, \*rows).

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, *Pareto Smoothed Importance Sampling*,
        arXiv 1507.02646.
    """

    log_weights: Float[A, "samples ..."]

    @cached_property
    def log_evidence(self) -> Float[A, "*rows"]:
        r""":math:`\log \frac{1}{S} \sum_s w_{s,i}`, in nats."""
        return self._as_given(_log_sum(self._numbers) - math.log(len(self._numbers)))

    @property
    def total(self) -> Float[A, ""]:
        """The log evidence of all rows together, in nats."""
        return self.log_evidence.sum()

    @cached_property
    def effective_sample_size(self) -> Float[A, "*rows"]:
        r""":math:`(\sum_s w_{s,i})^2 / \sum_s w_{s,i}^2`, between 1 and the number of samples."""
        return self._as_given(_effective_sample_size(self._numbers))

    @cached_property
    def standard_error(self) -> Float[A, "*rows"]:
        r"""That of the log evidence, :math:`\mathrm{sd}(w_i) / (\sqrt{S} \, \bar w_i)`, in nats.

        To be believed only where :attr:`pareto_k` is below 0.5: beyond, w has no variance.
        """
        num_samples = len(self._numbers)
        squared_variation = num_samples / _effective_sample_size(self._numbers) - 1
        return self._as_given(np.sqrt(np.maximum(squared_variation, 0) / (num_samples - 1)))

    @cached_property
    def pareto_k(self) -> Float[A, "*rows"]:
        """The shape of the tail of the weights, above 0.7 where the estimate is not to be believed.

        It is infinite where there are too few weights to fit a tail, and 0 where there is none, for
        the largest weights agree to a thousandth of a nat.
        """
        rows = self._numbers.reshape(len(self._numbers), -1)
        shapes = np.array([pareto_k(row) for row in rows.T])
        return self._as_given(shapes.reshape(self._numbers.shape[1:]))

    @cached_property
    def _numbers(self) -> Float[np.ndarray, "samples ..."]:
        """The log weights in double precision."""
        weights = self.log_weights
        return np.asarray(weights.cpu() if hasattr(weights, "cpu") else weights).astype(float)

    def _as_given(self, values: Any) -> Any:
        """Values in the type, the precision and the place of the log weights."""
        if hasattr(self.log_weights, "new_tensor"):
            return self.log_weights.new_tensor(values)
        return np.asarray(values, self.log_weights.dtype)


LOG_EVIDENCE = r"""
.. math::
    \log p(x_i) \approx \log \frac{1}{S} \sum_{s=1}^S
    \frac{p(x_i, z_{s,i})}{q(z_{s,i} \mid x_i)}, \qquad z_{s,i} \sim q

A row is an index of the plates that *all* sites of model and guide are in; plates within are
summed over. Where a latent is in no plate, or the guide's latents are not independent, rows
cannot be told apart: there is one weight for the whole data set, and results have shape ().

The estimate of each row is that of the row by itself: the subsampling factor N / B, as any
``$scale``, is left out. Masked rows have log evidence 0. In expectation it is a lower bound, which
rises with the number of samples. A minibatch is drawn once;
$choose_rows.

Args:
    num_samples: the number S of draws per row.
    chunk_size: $chunk_size
    elbo: draws from ``elbo.refine(model, guide)`` in the guide's place. Its bound is tighter;
        whether its weights are better too, ``effective_sample_size`` tells. A draw whose flow
        diverged has weight 0.

Returns:
    The estimate with its reliability; a warning says so where it is not to be believed.

Raises:
    ValueError: naming the site: for a latent that only one of model and guide draws, a point
        mass in the guide, or a site outside of a subsampled plate; for a number out of range.

References:
    Burda, Grosse, Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.
"""


def warn_if_unreliable(evidence: Evidence[Any]) -> None:
    """Say, where the user asks for it, that an estimate must not be believed."""
    pareto_k = np.array(evidence.pareto_k.tolist()).reshape(-1)
    is_nan = np.isnan(pareto_k)
    if is_nan.any():
        warnings.warn(
            f"log_evidence: nan in {int(is_nan.sum())} of {is_nan.size} rows: the density of model "
            "or guide is nan there; look at the data and at the parameters",
            stacklevel=3,
        )
    weightless = np.isneginf(np.array(evidence.log_evidence.tolist()).reshape(-1))
    if weightless.any():
        warnings.warn(
            f"log_evidence: no draw has a weight in {int(weightless.sum())} of {weightless.size} "
            "rows: the model excludes what the guide draws there, or the elbo's flow diverged in "
            "every draw; lower its step_size",
            stacklevel=3,
        )
    unreliable = pareto_k[~weightless]
    unreliable = unreliable[unreliable > RELIABLE_PARETO_K]
    if len(unreliable) > 0:
        warnings.warn(
            f"log_evidence: Pareto k > {RELIABLE_PARETO_K} in {len(unreliable)} of {pareto_k.size} "
            f"rows, up to {float(unreliable.max()):.2f}: do not believe their estimates; draw more "
            "samples, or from a guide nearer to the posterior",
            stacklevel=3,
        )


def pareto_k(log_weights: Float[np.ndarray, " samples"]) -> float:
    """The shape of a generalised Pareto distribution fitted to the tail of the weights.

    Args:
        log_weights: their logarithms.

    Returns:
        The shape; infinity where the tail is too short, and 0 where all its weights are the same.
    """
    peak = log_weights.max()
    if not math.isfinite(peak):
        return math.nan if math.isnan(peak) else math.inf
    log_weights = np.sort(log_weights - peak)
    tail = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    cutoff = max(log_weights[-tail - 1], math.log(sys.float_info.min))
    if cutoff > -1e-3:
        return 0.0
    excess = np.exp(log_weights[log_weights > cutoff]) - math.exp(cutoff)
    if len(excess) <= 4:
        return math.inf
    return _generalised_pareto_shape(excess) if excess[0] < excess[-1] else 0.0


def _generalised_pareto_shape(excess: Float[np.ndarray, " tail"]) -> float:
    """An empirical Bayes estimate from ordered values, as in ArviZ and Pyro.

    It is that of Zhang and Stephens, *A new and efficient estimation method for the generalized
    Pareto distribution*, Technometrics 51, 2009, drawn a little to 0.5. Neither library is here in
    both halves.
    """
    size = len(excess)
    num_grid = 30 + int(math.sqrt(size))
    quartile = excess[int(size / 4 + 0.5) - 1]
    steps = 1 - np.sqrt(num_grid / (np.arange(num_grid) + 0.5))
    grid = 1 / excess[-1] + steps / (3 * quartile)
    shapes = np.log1p(-grid[:, None] * excess).mean(1)
    log_density = size * (np.log(-grid / shapes) - shapes - 1)
    density = np.exp(log_density - log_density.max())
    best = (grid * density).sum() / density.sum()
    shape = np.log1p(-best * excess).mean()
    return float((size * shape + 10 * 0.5) / (size + 10))


def _log_sum(log_weights: Float[np.ndarray, "samples ..."]) -> Float[np.ndarray, "*rows"]:
    peak = log_weights.max(0)
    peak = np.where(np.isinf(peak), 0.0, peak)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_weights - peak).sum(0)) + peak


def _effective_sample_size(
    log_weights: Float[np.ndarray, "samples ..."],
) -> Float[np.ndarray, "*rows"]:
    with np.errstate(invalid="ignore"):  # where all weights are 0
        return np.exp(2 * _log_sum(log_weights) - _log_sum(2 * log_weights))

r"""One latent for a whole data set: its evidence, its posterior and its best parameters, exactly.

.. math::
    z \sim N(0, I_d), \qquad
    x_i \mid z \sim N(z + \Delta, \mathrm{diag}(\sigma^2)), \quad i = 1, \dots, N

The data enter through their mean and their scatter, :math:`S_j = \sum_i (x_{ij} - \bar x_j)^2`.
Arrays have the shape (data sets, d); what is summed over the coordinates has (data sets,).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DataSets:
    """Data sets of one size, by what the likelihood sees of them.

    Attributes:
        size: Number of data N in each.
        mean: Their means, of shape (data sets, d).
        scatter: Their sums of squared deviations from the mean, likewise.
    """

    size: int
    mean: Array
    scatter: Array


@dataclass(frozen=True)
class Parameters:
    """What is learned: the shift Δ and the scale σ, each of shape (data sets, d) or (d,)."""

    shift: Array
    sigma: Array


def truth(dim: int) -> Parameters:
    """The parameters that the data are drawn with: σ from 1 at the ends to 0.1 in the middle."""
    centred = np.arange(dim) - (dim - 1) / 2
    if dim == 1:
        return Parameters(centred / 5, np.ones(1))
    return Parameters(centred / 5, 0.1 + 0.9 * (2 * centred / (dim - 1)) ** 2)


def draw(parameters: Parameters, *, size: int, seeds: Sequence[int]) -> DataSets:
    """A data set per seed, each with a latent of its own."""
    drawn = [_draw_one(parameters, size, seed) for seed in seeds]
    mean = np.stack([x.mean(0) for x in drawn])
    scatter = np.stack([((x - x.mean(0)) ** 2).sum(0) for x in drawn])
    return DataSets(size, mean, scatter)


def log_evidence(parameters: Parameters, data: DataSets) -> Array:
    r"""Exact :math:`\log p_\theta(D)` in nats.

    A coordinate's data are normal with covariance :math:`\sigma^2 I + 1 1^\top`, whose determinant
    is :math:`\sigma^{2 (N - 1)} (\sigma^2 + N)`.
    """
    n, variance = data.size, parameters.sigma**2
    log_determinant = (n - 1) * np.log(variance) + np.log(variance + n)
    distance = data.scatter / variance + n * (data.mean - parameters.shift) ** 2 / (variance + n)
    return -0.5 * (n * np.log(2 * np.pi) + log_determinant + distance).sum(-1)


def maximum_likelihood(data: DataSets) -> Parameters:
    r"""Where the evidence is highest.

    :math:`\hat\Delta = \bar x`; and the variance v solves
    :math:`N v^2 + (N (N - 1) - S) v - N S = 0`, for the evidence's derivative is 0 there.
    """
    n = data.size
    linear = n * (n - 1) - data.scatter
    root = np.sqrt(linear**2 + 4 * n**2 * data.scatter)
    # The other form of the positive root would subtract two numbers that nearly agree.
    variance = 2 * n * data.scatter / (linear + root)
    return Parameters(data.mean, np.sqrt(variance))


def posterior(parameters: Parameters, data: DataSets) -> tuple[Array, Array]:
    """Mean and standard deviation of the latent given the data: coordinates are independent."""
    variance = parameters.sigma**2 / (parameters.sigma**2 + data.size)
    loc = (1 - variance) * (data.mean - parameters.shift)
    return loc, np.sqrt(np.broadcast_to(variance, loc.shape))


def expected_shift_error(parameters: Parameters, *, size: int) -> float:
    r""":math:`E \| \bar x - \Delta \|^2 = d + \sum_j \sigma_j^2 / N`: the latent's own variance."""
    return float((1 + parameters.sigma**2 / size).sum())


def least_gap_from_prior(parameters: Parameters, data: DataSets) -> Array:
    r"""A lower bound on the gap of any volume-preserving flow from the prior, in nats.

    The flow takes normal (z, ρ) of unit covariance, cooled, to a law whose covariance keeps
    determinant 1 in each coordinate; its target has :math:`\tau^2`, with τ the posterior's standard
    deviation. The divergence between two such normals is least where the law's variances are the
    target's times :math:`1 / \tau`: :math:`1 / \tau - 1 - \log (1 / \tau)`.
    """
    _, tau = posterior(parameters, data)
    return (1 / tau - 1 + np.log(tau)).sum(-1)


def _draw_one(parameters: Parameters, size: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal(parameters.shift.shape)
    noise = rng.standard_normal((size, *parameters.shift.shape))
    return latent + parameters.shift + parameters.sigma * noise

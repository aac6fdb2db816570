# SPDX-License-Identifier: MIT
"""What each dimension of the code tells: how its mean varies, how far it is from the prior."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from pyro_infovae._core.data_runs import DataRuns, Quantity
from pyro_infovae._core.pair_statistics import mean_of_pairs, standard_error_of_pairs

A = TypeVar("A", bound=Any)


@dataclass(frozen=True, eq=False)
class ActiveUnits(Generic[A]):
    """How much the posterior mean of each latent dimension varies over the data.

    Attributes:
        variance: the variance over the data of E[z | x], in units of z².
        standard_error: its standard error over the draws of z; 0 where nothing was drawn.
        threshold: the variance above which a dimension is active.
        dimensions: the name of each dimension: its site's, and a number where there are several.
        num_data: the data that count.
    """

    variance: Float[A, " dims"]
    standard_error: Float[A, " dims"]
    threshold: float
    dimensions: tuple[str, ...]
    num_data: int

    @property
    def active(self) -> Bool[A, " dims"]:
        """Whether the variance is above the threshold."""
        return self.variance > self.threshold

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return int(self.active.sum())


ACTIVE_UNITS = r"""
.. math:: A_u = \mathrm{Var}_x \left( E_{q(z \mid x)}[z_u] \right)

Where the guide's conditional is normal, or a point mass, the mean is its parameter. Otherwise
it is estimated by draws, and :math:`A_u` by their covariance over the data, averaged over all
pairs of independent runs of the guide: it is unbiased, and may be slightly negative. A plate
with a ``subsample_size`` is run over all its minibatches.

Args:
    threshold: the variance above which a dimension is active, in units of z².
    num_samples: runs of the guide where the mean is not its parameter, at least 4.

Returns:
    The variances, and which of the dimensions are active.

Raises:
    ValueError: for a number out of range, fewer than 2 data, codes that are not finite, or
        more than one subsampled plate.

References:
    Burda, Grosse, Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.
"""


def check_active_units(threshold: float, num_samples: int) -> None:
    """Refuse numbers out of range."""
    if not threshold >= 0:
        raise ValueError(f"Expected threshold >= 0; got {threshold}")
    if num_samples < 4:
        raise ValueError(f"Expected num_samples >= 4; got {num_samples}")


def ask_active_units(
    runs: DataRuns, means: Quantity, seeds: Iterable[Any], *, num_samples: int, threshold: float
) -> ActiveUnits[Any]:
    """The variance over the data of what has the mean E[z | x] in every run."""
    draws = runs.repeat(means, seeds, times=num_samples)
    runs.check_finite(draws, "guide gives")
    variance, error = map(runs.array, _variance_of_expectation(draws))
    return ActiveUnits(variance, error, threshold, runs.features, num_data=len(runs.kept))


def _variance_of_expectation(
    draws: Float[np.ndarray, "runs data dims"],
) -> tuple[Float[np.ndarray, " dims"], Float[np.ndarray, " dims"]]:
    """The covariance over the data of different runs, and its standard error."""
    centred = draws - draws.mean(1, keepdims=True)
    covariance = np.einsum("sid,tid->dst", centred, centred) / (draws.shape[1] - 1)
    if np.array_equal(draws[0], draws[1]):
        return covariance[:, 0, 1], np.zeros_like(covariance[:, 0, 1])
    pairs = covariance.astype(float)
    for of_dimension in pairs:
        np.fill_diagonal(of_dimension, 0.0)
    return (
        np.array([mean_of_pairs(of_dimension) for of_dimension in pairs], draws.dtype),
        np.array([standard_error_of_pairs(of_dimension) for of_dimension in pairs], draws.dtype),
    )


@dataclass(frozen=True, eq=False)
class KLByDimension(Generic[A]):
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

    terms: Float[A, "data dims"]
    per_datum: Float[A, " data"]
    standard_error: Float[A, " data"]
    datum: Int[A, " data"]
    dimensions: tuple[str, ...]
    unsplit: dict[str, str]

    @property
    def per_dimension(self) -> Float[A, " dims"]:
        """The average over the data of each dimension's term."""
        return self.terms.mean(0)

    @property
    def mean(self) -> float:
        """The average over the data."""
        return float(self.per_datum.mean())

    @property
    def mean_error(self) -> float:
        """The standard error of the average, over the draws of z."""
        return float((self.standard_error**2).sum()) ** 0.5 / len(self.standard_error)


KL_BY_DIMENSION = r"""
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
    num_samples: runs to average over where not all is known in closed form, at least 2.

Returns:
    The terms, and their sum for each datum.

Raises:
    ValueError: for a point mass in the guide, a latent of the model that the guide does not
        draw, fewer than 2 data, codes that are not finite, or more than one subsampled
        plate$one_code.

References:
    Lucas, Tucker, Grosse, Norouzi, *Don't Blame the ELBO! A Linear VAE Perspective on
    Posterior Collapse*, arXiv 1911.02469.
"""


def check_kl_by_dimension(num_samples: int) -> None:
    """Refuse a number out of range."""
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")


def ask_kl_by_dimension(
    runs: DataRuns,
    terms: Quantity,
    seeds: Iterable[Any],
    *,
    num_samples: int,
    unsplit: dict[str, str],
) -> KLByDimension[Any]:
    """The average over runs of the terms of each dimension, behind which there is their sum."""
    draws = runs.repeat(terms, seeds, times=num_samples)
    sums = draws[:, :, -1]
    return KLByDimension(
        terms=runs.array(draws.mean(0)[:, :-1]),
        per_datum=runs.array(sums.mean(0)),
        standard_error=runs.array(sums.std(0, ddof=1) / len(draws) ** 0.5),
        datum=runs.array(runs.datum),
        dimensions=runs.features,
        unsplit=unsplit,
    )

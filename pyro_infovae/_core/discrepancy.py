# SPDX-License-Identifier: MIT
"""Does q(z) match p(z)? A permutation test, and a weight of the MMD to start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from pyro_infovae._core.data_runs import DataRuns
from pyro_infovae._core.pair_statistics import (
    mean_of_pairs,
    permutation_p_value,
    standard_error_of_pairs,
)

Kernel: TypeAlias = Callable[[Any, Any], Any]
Codes: TypeAlias = Float[np.ndarray, "data features"]


@dataclass(frozen=True)
class MMDTest:
    """The discrepancy of aggregated posterior and prior, and whether it may be chance.

    Attributes:
        mmd_squared: the unbiased estimate of MMD²(q(z), p(z)), which may be slightly negative.
        standard_error: its standard error, over the data and the draws.
        p_value: how often a discrepancy as large is met where q(z) = p(z).
        num_data: the data whose codes were compared.
        num_permutations: the permutations that the p-value comes from.
    """

    mmd_squared: float
    standard_error: float
    p_value: float
    num_data: int
    num_permutations: int


MMD_TEST = r"""
.. math::
    \mathrm{MMD}^2 = \frac{1}{n (n - 1)} \sum_{i \ne j}
    k(z_i, z_j) + k(z'_i, z'_j) - k(z_i, z'_j) - k(z'_i, z_j),
    \qquad z_i \sim q(z \mid x_i), \; z'_i \sim p(z)

Each datum has a code from the guide and one from the model, all other latents as the guide drew
them. Where q(z) = p(z) the two may be swapped, and the p-value is the fraction of random
swaps with a discrepancy as large, which is below 5% for at most 5% of data sets. The data must
be independent of one another, given the latents outside their plates. A plate with a
``subsample_size`` is run over all its minibatches.

Args:
    kernel: a kernel of :mod:`$package.kernels`, or any callable ``(x, y) -> matrix`` that is
        symmetric and positive definite; ``RBF()`` by default, as in
        :class:`~$package.TraceMMD_ELBO`.
    num_permutations: the number B of random swaps; no p-value is below 1 / (1 + B).
    max_data: where there are more data, a random choice of so many is compared: time and
        memory grow with its square.
    sites: the latents, by name, in one stack of plates; their joint distribution counts. By
        default every reparameterised latent in plates of data.

Returns:
    The discrepancy, its standard error and p-value.

Raises:
    ValueError: for a number out of range, fewer than 4 data, codes that are not finite, a
        kernel of another shape, or more than one subsampled plate.

References:
    Gretton, Borgwardt, Rasch, Schölkopf, Smola. A Kernel Two-Sample Test. JMLR 13, 2012.
"""


def check_mmd_test(num_permutations: int, max_data: int) -> None:
    """Refuse numbers out of range."""
    if num_permutations < 1:
        raise ValueError(f"Expected num_permutations >= 1; got {num_permutations}")
    _check_max_data(max_data)


def ask_mmd_test(
    runs: DataRuns,
    codes: tuple[Codes, Codes],
    kernel: Kernel,
    rng: np.random.Generator,
    *,
    num_permutations: int,
    max_data: int,
) -> MMDTest:
    """Compare a code of each datum from the guide with one from the model."""
    contrasts = _contrasts_of_codes(runs, codes, kernel, rng, max_data)
    return MMDTest(
        mmd_squared=mean_of_pairs(contrasts),
        standard_error=standard_error_of_pairs(contrasts),
        p_value=permutation_p_value(contrasts, num_permutations, rng),
        num_data=len(contrasts),
        num_permutations=num_permutations,
    )


@dataclass(frozen=True)
class SuggestedLambd:
    """A weight of the MMD, and the terms that it balances.

    Attributes:
        lambd: the weight λ.
        standard_error: its standard error, that of MMD² carried over.
        log_likelihood: E log p(x | z) in nats, summed over the data set.
        mmd_squared: the unbiased estimate of MMD²(q(z), p(z)).
        num_data: N, which MMD² is multiplied by in the objective.
    """

    lambd: float
    standard_error: float
    log_likelihood: float
    mmd_squared: float
    num_data: int


SUGGEST_LAMBD = r"""
.. math::
    N (\alpha + \lambda - 1) \, \mathrm{MMD}^2 = s \, |E_q \log p(x \mid z)|
    \quad \Rightarrow \quad
    \lambda = 1 - \alpha + s \, \frac{|E_q \log p(x \mid z)|}{N \, \mathrm{MMD}^2}

Both sides are in nats, summed over the data set, as in the loss of
:class:`~$package.TraceMMD_ELBO`. It is a seed to search around, for the model and guide as they
are now: where q(z) is near p(z) already, λ is large and uncertain.

Args:
    share: the share s of the reconstruction term.
    alpha: the α of the objective.
    kernel: the kernel of the objective; ``RBF()`` by default.
    max_data: where there are more data, MMD² is estimated on a random choice of so many.
    sites: the latents to penalise, by name, in one stack of plates. By default every
        reparameterised latent in plates.

Returns:
    The weight and the terms that it balances.

Raises:
    ValueError: for a number out of range, an estimate of MMD² that is not positive, a model
        that observes nothing, or what :func:`~$package.diagnostics.mmd_test` refuses.

References:
    For s = 1 it is the ratio ``logP_mmd_ratio`` of AutoEncoderToolkit.jl.
"""


def check_suggest_lambd(share: float, alpha: float, max_data: int) -> None:
    """Refuse numbers out of range."""
    if not share > 0:
        raise ValueError(f"Expected share > 0; got {share}")
    if not alpha <= 1:
        raise ValueError(f"Expected alpha <= 1; got {alpha}")
    _check_max_data(max_data)


def check_observes(caller: str, data: Sequence[str]) -> None:
    """Refuse a model that observes nothing."""
    if not data:
        raise ValueError(
            f"{caller}: the model observes nothing, so that there is no reconstruction term to "
            "balance: observe the data by obs="
        )


def ask_suggest_lambd(
    runs: DataRuns,
    minibatches: Sequence[tuple[Any, Any, Any]],
    kernel: Kernel,
    rng: np.random.Generator,
    *,
    share: float,
    alpha: float,
    max_data: int,
) -> SuggestedLambd:
    """Balance the MMD with the reconstruction.

    Each minibatch has codes from the guide and from the model, and a log likelihood that is scaled
    to all data.
    """
    posterior, prior, log_likelihoods = zip(*minibatches, strict=True)
    codes = runs.per_datum(posterior), runs.per_datum(prior)
    contrasts = _contrasts_of_codes(runs, codes, kernel, rng, max_data)
    mmd_squared = mean_of_pairs(contrasts)
    if not mmd_squared > 0:
        raise ValueError(
            f"{runs.caller}: Expected a positive MMD²; got the estimate {mmd_squared:.2g}: q(z) "
            "cannot be told from p(z), so that no weight follows; use more data, or keep the weight"
        )
    log_likelihood = float(np.mean(log_likelihoods))
    weight = share * abs(log_likelihood) / (runs.num_data * mmd_squared)
    return SuggestedLambd(
        lambd=1 - alpha + weight,
        standard_error=weight * standard_error_of_pairs(contrasts) / mmd_squared,
        log_likelihood=log_likelihood,
        mmd_squared=mmd_squared,
        num_data=runs.num_data,
    )


def pair_contrasts(x: Any, y: Any, kernel: Kernel) -> Float[np.ndarray, "n n"]:
    r"""Return :math:`k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)`, 0 on the diagonal.

    Args:
        x: n rows.
        y: n rows.
        kernel: a function of both to an array that NumPy can read.

    Raises:
        ValueError: when the kernel gives no matrix.
    """
    n = len(x)
    xx, yy, xy = (np.asarray(kernel(*pair), float) for pair in ((x, x), (y, y), (x, y)))
    for pairs in (xx, yy, xy):
        if pairs.shape != (n, n):
            raise ValueError(f"Expected kernel(x, y) of shape {(n, n)}; got {tuple(pairs.shape)}")
    contrasts: Float[np.ndarray, "n n"] = xx + yy - xy - xy.T
    np.fill_diagonal(contrasts, 0.0)
    return contrasts


def _check_max_data(max_data: int) -> None:
    """Refuse so few data that the error of their discrepancy cannot be estimated."""
    if max_data < 4:
        raise ValueError(f"Expected max_data >= 4; got {max_data}")


def _contrasts_of_codes(
    runs: DataRuns,
    codes: tuple[Codes, Codes],
    kernel: Kernel,
    rng: np.random.Generator,
    max_data: int,
) -> Float[np.ndarray, "data data"]:
    for part, source in zip(codes, ("guide draws", "model draws"), strict=True):
        runs.check_finite(part, source)
    if len(runs.kept) < 4:
        raise ValueError(f"{runs.caller}: Expected at least 4 data; got {len(runs.kept)}")
    chosen = rng.permutation(len(runs.kept))[:max_data]
    posterior, prior = (runs.array(part[chosen]) for part in codes)
    return pair_contrasts(posterior, prior, kernel)

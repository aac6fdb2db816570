# SPDX-License-Identifier: MIT
"""Averages over pairs of independent rows: their standard error, and a permutation test."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

_ELEMENTS_PER_CHUNK = 2**23


def mean_of_pairs(values: Float[np.ndarray, "n n"]) -> float:
    r"""Return the average :math:`\frac{1}{n (n - 1)} \sum_{i \ne j} h_{ij}` (a U-statistic).

    Args:
        values: h, symmetric, with zeros on the diagonal.

    Example:
        >>> mean_of_pairs(np.array([[0.0, 0.5], [0.5, 0.0]]))
        0.5
    """
    n = len(values)
    return float(values.sum() / (n * (n - 1)))


def standard_error_of_pairs(values: Float[np.ndarray, "n n"]) -> float:
    r"""Estimate the standard error of :func:`mean_of_pairs`, where rows are independent.

    .. math::
        \mathrm{Var} = \frac{4 (n - 2) \zeta_1 + 2 \zeta_2}{n (n - 1)}, \qquad
        \zeta_1 = \mathrm{Cov}(h_{12}, h_{13}), \quad \zeta_2 = \mathrm{Var}(h_{12})

    with unbiased estimates of both; one that is negative counts as 0.

    Args:
        values: h, symmetric, with zeros on the diagonal; at least 4 rows.

    References:
        Hoeffding. A Class of Statistics with Asymptotically Normal Distribution. Annals of
        Mathematical Statistics 19, 1948.

    Example:
        >>> standard_error_of_pairs(0.5 * (1 - np.eye(5)))  # all alike
        0.0
    """
    n = len(values)
    of_row = values.sum(1)
    total, rows, squares = of_row.sum() ** 2, of_row @ of_row, np.square(values).sum()
    disjoint = (total - 4 * rows + 2 * squares) / math.perm(n, 4)
    covariance = max((rows - squares) / math.perm(n, 3) - disjoint, 0.0)
    variance = max(squares / math.perm(n, 2) - disjoint, 0.0)
    return math.sqrt((4 * (n - 2) * covariance + 2 * variance) / math.perm(n, 2))


def permutation_p_value(
    values: Float[np.ndarray, "n n"], num_permutations: int, rng: np.random.Generator
) -> float:
    r"""Compare the sum over all pairs with what it is after rows have changed their signs.

    A row is a contrast of two quantities, such as :math:`k(x_i, \cdot) - k(y_i, \cdot)`: to swap
    them turns the sign of :math:`h_{ij}` for all j. A permutation is a vector of signs s, and its
    statistic :math:`s^\top h s`. Where a swap leaves the law of the row as it is, the result is at
    most a with a probability of at most a.

    Args:
        values: h, symmetric, with zeros on the diagonal.
        num_permutations: B, the number of random permutations.
        rng: draws the permutations.

    Returns:
        :math:`(1 + \#\{b : s_b^\top h s_b \ge 1^\top h 1\}) / (1 + B)`.

    References:
        Chwialkowski, Sejdinovic, Gretton, *A Wild Bootstrap for Degenerate Kernel Tests*,
        arXiv 1408.5404.

    Example:
        >>> permutation_p_value(1 - np.eye(20), 999, np.random.default_rng(0))
        0.001
    """
    n = len(values)
    observed = np.ones((1, n)) @ values @ np.ones(n)
    chunk = max(1, _ELEMENTS_PER_CHUNK // n)
    count = 0
    for start in range(0, num_permutations, chunk):
        size = min(chunk, num_permutations - start)
        signs = rng.choice((-1.0, 1.0), size=(size, n))
        permuted = np.einsum("bi,bi->b", signs @ values, signs)
        count += int((permuted >= observed).sum())
    return (1 + count) / (1 + num_permutations)

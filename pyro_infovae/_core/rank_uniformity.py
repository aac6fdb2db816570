# SPDX-License-Identifier: MIT
"""Are ranks uniform? A chi-square test."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

MOST_BINS = 21
FEWEST_PER_BIN = 5


def chi_square_p_value(ranks: Int[np.ndarray, " ranks"], num_ranks: int) -> float:
    r"""Test that independent ranks 0, ..., ``num_ranks`` - 1 are equally probable.

    The ranks are counted in bins, an odd number of them, at most 21 and of at least 5 expected
    ranks, so that the distribution function is a finite sum: with 2 m degrees of freedom

    .. math::
        \chi^2 = \sum_b \frac{(n_b - e_b)^2}{e_b}, \qquad
        P(X > \chi^2) = e^{-\chi^2 / 2} \sum_{j < m} \frac{(\chi^2 / 2)^j}{j!}

    Args:
        ranks: the ranks.
        num_ranks: how many there can be.

    Raises:
        ValueError: for fewer than 15 ranks, or fewer than 3 that there can be.

    Example:
        >>> chi_square_p_value(np.arange(100), 100)
        1.0
        >>> chi_square_p_value(np.arange(100) // 2, 100) < 1e-9
        True
    """
    if len(ranks) < 3 * FEWEST_PER_BIN or num_ranks < 3:
        raise ValueError(
            f"Expected at least {3 * FEWEST_PER_BIN} ranks, of at least 3 that there can be; got "
            f"{len(ranks)} of {num_ranks}: use more simulations, or more samples"
        )
    most = min(MOST_BINS, num_ranks, len(ranks) // FEWEST_PER_BIN)
    num_bins = most - 1 + most % 2
    edges = np.round(np.linspace(0, num_ranks, num_bins + 1)).astype(int)
    expected = len(ranks) * np.diff(edges) / num_ranks
    observed, _ = np.histogram(ranks, bins=edges - 0.5)
    half = float((np.square(observed - expected) / expected).sum()) / 2
    terms = (half**j / math.factorial(j) for j in range((num_bins - 1) // 2))
    return math.exp(-half) * sum(terms)

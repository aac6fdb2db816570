"""The chi-square test of ranks against the incomplete gamma function, and its level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_infovae._core.rank_uniformity import chi_square_p_value


def test_the_p_value_is_that_of_chi_square() -> None:
    """500 ranks 0, ..., 104 in 21 bins of 5 ranks each."""
    ranks = np.random.default_rng(0).integers(0, 105, size=500) ** 2 // 104
    counts = np.bincount(ranks // 5, minlength=21)
    statistic = float((np.square(counts - 500 / 21) / (500 / 21)).sum())
    expected = torch.special.gammaincc(torch.tensor(10.0), torch.tensor(statistic / 2))
    assert chi_square_p_value(ranks, 105) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("num_ranks", "size"), [(3, 15), (4, 40), (20, 100), (100, 1000)])
def test_p_values_are_uniform_where_the_ranks_are(num_ranks: int, size: int) -> None:
    """Also where the bins cannot be of equal size."""
    rng = np.random.default_rng(0)
    p_values = np.array(
        [chi_square_p_value(rng.integers(0, num_ranks, size), num_ranks) for _ in range(2000)]
    )
    for level in (0.05, 0.5):
        error = math.sqrt(level * (1 - level) / 2000)
        # The statistic of few counts is discrete.
        tolerance = 4 * error + (0.05 if size < 100 else 0.01)
        assert np.mean(p_values <= level) == pytest.approx(level, abs=tolerance)


def test_finds_ranks_at_the_ends_and_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    ends = rng.choice([0, 1, 98, 99], size=200)
    middle = rng.integers(30, 70, size=200)
    assert max(chi_square_p_value(ends, 100), chi_square_p_value(middle, 100)) < 1e-10


@pytest.mark.parametrize(("size", "num_ranks"), [(14, 10), (100, 2)])
def test_refuses_too_few(size: int, num_ranks: int) -> None:
    with pytest.raises(ValueError, match=f"at least 15 ranks.*got {size} of {num_ranks}"):
        chi_square_p_value(np.zeros(size, dtype=int), num_ranks)

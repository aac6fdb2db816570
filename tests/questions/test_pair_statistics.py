"""Statistics of pairs against enumeration, and against their spread over data sets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pyro_infovae._core.pair_statistics import (
    mean_of_pairs,
    permutation_p_value,
    standard_error_of_pairs,
)


def contrasts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j) of numbers, k of lengthscale 1."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * (a[:, None] - b) ** 2)

    h = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    np.fill_diagonal(h, 0.0)
    return h


class TestStandardError:
    @pytest.mark.parametrize("shift", [0.0, 1.0])
    @pytest.mark.parametrize("n", [6, 40])
    def test_is_the_spread_over_samples(self, n: int, shift: float) -> None:
        """Where x and y have the same law (a degenerate statistic), and where they have not."""
        rng = np.random.default_rng(0)
        samples = [contrasts(rng.normal(size=n) + shift, rng.normal(size=n)) for _ in range(1500)]
        spread = np.std([mean_of_pairs(h) for h in samples])
        claimed = math.sqrt(np.mean([standard_error_of_pairs(h) ** 2 for h in samples]))
        assert claimed / spread == pytest.approx(1.0 if shift else 1.15, abs=0.2)

    def test_the_moments_are_those_of_distinct_rows(self) -> None:
        """ζ₁ and ζ₂ from sums over all triples and quadruples."""
        rng = np.random.default_rng(1)
        rows = 1.0 + rng.normal(size=6)
        h = np.multiply.outer(rows, rows)
        np.fill_diagonal(h, 0.0)
        pairs = list(itertools.permutations(range(6), 2))
        triples = list(itertools.permutations(range(6), 3))
        fours = list(itertools.permutations(range(6), 4))
        disjoint = sum(h[i, j] * h[k, m] for i, j, k, m in fours) / len(fours)
        zeta_1 = sum(h[i, j] * h[i, k] for i, j, k in triples) / len(triples) - disjoint
        zeta_2 = sum(h[i, j] ** 2 for i, j in pairs) / len(pairs) - disjoint
        assert min(zeta_1, zeta_2) > 0
        expected = math.sqrt((4 * 4 * zeta_1 + 2 * zeta_2) / 30)
        assert standard_error_of_pairs(h) == pytest.approx(expected, rel=1e-12)


class TestPermutation:
    def test_against_all_swaps(self) -> None:
        """Recomputed from the swapped rows, all 2⁸ of them."""
        rng = np.random.default_rng(2)
        x, y = rng.normal(size=8) + 0.7, rng.normal(size=8)
        observed = mean_of_pairs(contrasts(x, y))
        swaps = [np.array(swap) for swap in itertools.product([False, True], repeat=8)]
        values = [mean_of_pairs(contrasts(np.where(s, y, x), np.where(s, x, y))) for s in swaps]
        exact = np.mean([value >= observed - 1e-12 for value in values])
        assert 0.005 < exact < 0.5
        p_value = permutation_p_value(contrasts(x, y), 20_000, rng)
        assert p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))

    def test_p_values_are_uniform_where_the_laws_are_equal(self) -> None:
        rng = np.random.default_rng(3)
        p_values = np.array(
            [
                permutation_p_value(contrasts(rng.normal(size=15), rng.normal(size=15)), 99, rng)
                for _ in range(2000)
            ]
        )
        for level in (0.05, 0.2, 0.5, 0.8):
            error = math.sqrt(level * (1 - level) / 2000)
            assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * error)

    def test_chunks_of_permutations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        h = contrasts(np.linspace(0.0, 1.0, 10), np.linspace(0.5, 1.5, 10) ** 2)
        whole = permutation_p_value(h, 50, np.random.default_rng(0))
        monkeypatch.setattr("pyro_infovae._core.pair_statistics._ELEMENTS_PER_CHUNK", 70)
        assert permutation_p_value(h, 50, np.random.default_rng(0)) == whole

    def test_the_observed_sum_counts_as_one(self) -> None:
        h = 1.0 - np.eye(30)
        assert permutation_p_value(h, 99, np.random.default_rng(0)) == 0.01
        assert permutation_p_value(0 * h, 99, np.random.default_rng(0)) == 1.0

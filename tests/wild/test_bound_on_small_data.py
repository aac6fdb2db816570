"""In closed form the MMD is that of the data at hand, so that -loss is a bound on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tests import reference
from tests.arrays.libraries import TORCH, Library, assert_agree
from tests.elbo_suite import LOOPED, VECTORISED
from tests.halves import Case, Half

NUM, D = 5, 2
Normals = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def normals(seed: int, rows: int = NUM) -> Normals:
    """Locations and scales of guide and prior, one pair of normals per row."""
    rng = np.random.default_rng(seed)
    loc, prior_loc = rng.normal(size=(2, rows, D))
    scale, prior_scale = rng.uniform(0.1, 1.2, (2, rows, D))
    return loc, scale, prior_loc, prior_scale


def of_mixtures(rows: Normals, weights: np.ndarray | None = None) -> float:
    """By a double loop over the components of both mixtures, with a lengthscale of 1.1."""
    counts = [1.0] * len(rows[0]) if weights is None else list(weights)
    return reference.mmd_squared_normal(
        *rows, [1.1], estimator="biased", x_weights=counts, y_weights=counts
    )


def estimates(library: Library, **options: Any) -> Callable[..., list[Any]]:
    kernels, mmd = library.module("kernels"), library.module("mmd")

    def estimate(*arrays: Any) -> list[Any]:
        *rows, weights = arrays
        each = {"x_weights": weights, "y_weights": weights}
        return [mmd.mmd_squared_normal(*rows, kernels.RBF(1.1), **each, **options)]

    return estimate


@pytest.mark.parametrize(("draws", "masked"), [(1, False), (2, True)])
def test_of_all_data_it_is_that_of_the_mixtures(library: Library, draws: int, masked: bool) -> None:
    rows = tuple(np.tile(array, (draws, 1)) for array in normals(0))
    weights = np.tile(np.where(np.arange(NUM) == 2, float(not masked), 1.0), draws)
    estimate = estimates(library, batch_size=NUM, num_data=NUM)
    (got,) = library.differentiate(estimate, (*rows, weights))
    assert got.values[0] == pytest.approx(of_mixtures(rows, weights), rel=1e-10)
    (want,) = TORCH.differentiate(estimates(TORCH, batch_size=NUM, num_data=NUM), (*rows, weights))
    assert_agree([got], [want])


@pytest.mark.parametrize(("batch", "draws"), [(3, 1), (2, 2)])
def test_the_mean_over_all_minibatches_is_that_of_the_data_set(
    library: Library, batch: int, draws: int
) -> None:
    rows = normals(1)
    samples = [
        (*(np.tile(array[list(chosen)], (draws, 1)) for array in rows), np.ones(batch * draws))
        for chosen in combinations(range(NUM), batch)
    ]
    estimate = estimates(library, batch_size=batch, num_data=NUM)
    values = [got.values[0] for got in library.differentiate(estimate, *samples)]
    assert np.std(values) > 0.01
    assert np.mean(values) == pytest.approx(of_mixtures(rows), rel=1e-10)


def test_draws_from_the_mixtures_agree() -> None:
    rows, rng = normals(3), np.random.default_rng(0)
    loc, scale, prior_loc, prior_scale = rows

    def draw(loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
        component = rng.integers(NUM, size=200_000)
        return loc[component] + scale[component] * rng.normal(size=(200_000, D))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a - b) ** 2).sum(1) / (2 * 1.1**2))

    a, b = draw(loc, scale), draw(loc, scale)
    c, d = draw(prior_loc, prior_scale), draw(prior_loc, prior_scale)
    values = kernel(a, b) + kernel(c, d) - kernel(a, d) - kernel(c, b)
    error = values.std() / math.sqrt(len(values))
    (got,) = TORCH.differentiate(estimates(TORCH, num_data=NUM), (*rows, np.ones(NUM)))
    assert abs(values.mean() - got.values[0]) < 4 * error < 0.04 * got.values[0]


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 6), same=st.booleans())
@settings(deadline=None, max_examples=40)
def test_of_all_data_it_is_never_negative(seed: int, rows: int, same: bool) -> None:
    loc, scale, *prior = normals(seed, rows)
    arrays = (loc, scale, loc, scale) if same else (loc, scale, *prior)
    (got,) = TORCH.differentiate(estimates(TORCH, num_data=rows), (*arrays, np.ones(rows)))
    assert got.values[0] >= -1e-14


def test_a_minibatch_above_its_data_set_is_an_error(library: Library) -> None:
    arrays = [library.array(a) for a in normals(0)]
    estimate = library.module("mmd").mmd_squared_normal
    with pytest.raises(ValueError, match=r"^Expected num_data of at least batch_size=5; got 4$"):
        estimate(*arrays, library.module("kernels").RBF(), num_data=4)


def test_one_datum_of_several_tells_nothing(library: Library) -> None:
    rows = normals(0, rows=1)
    (got,) = library.differentiate(estimates(library, num_data=2), (*rows, np.ones(1)))
    assert got.values[0] == 0
    arrays = [library.array(a) for a in rows]
    estimate = library.module("mmd").mmd_squared_normal
    assert float(estimate(*arrays, library.module("kernels").RBF(), num_data=2)) == 0


SCALE = 0.3
VARIANCE = 1 / (1 + 1 / SCALE**2)


SPREAD = math.sqrt(1 + SCALE**2)


def data(num: int) -> np.ndarray:
    return norm.ppf((np.arange(num) + 0.5) / num) * SPREAD


def posterior(num: int) -> tuple[np.ndarray, np.ndarray]:
    loc = (data(num) * VARIANCE / SCALE**2)[:, None]
    return loc, np.full_like(loc, math.sqrt(VARIANCE))


def quantiles(half: Half, num: int, index: np.ndarray | None = None) -> tuple[Case, float, float]:
    """Data like their model's own, and the exact posterior as a guide.

    Returns:
        The programs, log p(x), and MMD²(q(z), p(z)) of all the data.
    """
    points = data(num)
    x = half.xp.asarray(points)

    def model() -> None:
        with half.plate("data", num, index=index) as chosen:
            z = half.sample("z", half.dist.Normal(0 * x[chosen], 1.0))
            half.sample("x", half.dist.Normal(z, SCALE), obs=x[chosen])

    def guide() -> None:
        with half.plate("data", num, index=index) as chosen:
            loc = half.param("slope", VARIANCE / SCALE**2) * x[chosen]
            half.sample("z", half.dist.Normal(loc, math.sqrt(VARIANCE)))

    prior = np.zeros((num, 1)), np.ones((num, 1))
    mmd = reference.mmd_squared_normal(*posterior(num), *prior, [1.0], estimator="biased")
    return Case(model, guide), float(norm.logpdf(points, scale=SPREAD).sum()), mmd


def test_the_exact_posterior_is_a_bound_at_a_large_weight(half: Half) -> None:
    case, evidence, mmd = quantiles(half, 16)
    particles = [{}] if half.compiles else [{}, LOOPED, VECTORISED]
    objectives = [
        half.library.TraceMMD_ELBO(
            lambd=1000.0, estimator="closed_form", base=half.infer.Trace_ELBO(**settings)
        )
        for settings in particles
    ]
    for step in half.steps(objectives, case):
        assert -step.loss < evidence
        assert step.loss == pytest.approx(-evidence + 16 * 999 * mmd, rel=1e-9)


def test_a_minibatch_weighs_the_pairs_as_the_data_set_does(half: Half) -> None:
    case, *_ = quantiles(half, 3, np.array([0, 2]))
    objective = half.library.TraceMMD_ELBO(
        lambd=1000.0, estimator="closed_form", base=half.infer.Trace_ELBO()
    )
    (z, scale), (zero, one) = posterior(3), (np.zeros((3, 1)), np.ones((3, 1)))

    def of(*rows: int, **options: Any) -> float:
        arrays = [array[list(rows)] for array in (z, scale, zero, one)]
        return reference.mmd_squared_normal(*arrays, [1.0], **options)

    same = (of(0, estimator="biased") + of(2, estimator="biased")) / 2
    expected = same / 3 + 2 / 3 * of(0, 2, batch_size=2)
    assert half.penalty(objective, case) == pytest.approx(3 * 999 * expected, rel=1e-9)

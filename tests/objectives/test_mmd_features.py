"""TraceMMD_ELBO by random frequencies has the unbiased estimate's expectation, in both halves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Case, Half
from tests.objectives.alone import in_both, slow_in_numpyro
from tests.objectives.programs import covariate_prior, hierarchical, masked, two_latents
from tests.objectives.statistics import averages_to, standard_error

MASK = np.arange(12) % 3 != 0
FEATURES = {"estimator": "features", "num_features": 32}
EXACT: dict[str, tuple[Callable[[Half], Case], dict[str, Any]]] = {
    "hierarchical": (partial(hierarchical, exact=True), VECTORISED),
    "two latents": (partial(two_latents, exact=True), ONE),
    "covariates": (partial(covariate_prior, exact=True), LOOPED),
}


def shifted(half: Half, *, prior_rows: bool) -> Case:
    """z ~ N(0, 1) of 12 data under a guide N(0.8, 0.7), the prior's rows written out or not."""

    def model() -> None:
        with half.plate("data", 12):
            shape = (12, 2) if prior_rows else (2,)
            half.sample("z", half.dist.Normal(half.xp.zeros(shape), 1.0).to_event(1))

    def guide() -> None:
        with half.plate("data", 12):
            loc = half.param("loc", 0.8) + half.xp.zeros((12, 2))
            half.sample("z", half.dist.Normal(loc, 0.7).to_event(1))

    return Case(model, guide)


def law(q: tuple[float, float], lengthscale: float) -> float:
    """MMD² between N(m, s²) and N(0, 1), each in two dimensions."""

    def k(variance: float, distance: float) -> float:
        t = lengthscale**2 + variance
        return lengthscale**2 / t * math.exp(-(distance**2) / t)

    loc, scale = q
    return k(2 * scale**2, 0.0) + k(2.0, 0.0) - 2 * k(1 + scale**2, loc)


@in_both("rows", [False, True], quick=[True])
def test_averages_to_the_mmd_of_the_laws(half: Half, rows: bool) -> None:
    kernel = half.library.RBF(1.2)
    objective = half.library.TraceMMD_ELBO(0.0, 2.0, kernel, **FEATURES)
    values = half.penalties(objective, shifted(half, prior_rows=rows), count=60)
    assert averages_to(values, 12 * law((0.8, 0.7), 1.2))
    assert standard_error(values) < 0.15 * 12 * law((0.8, 0.7), 1.2)


@in_both("name", EXACT, quick=[])
def test_exact_conditional_prior(half: Half, name: str) -> None:
    """Known in closed form, or drawn: where the guide draws from the prior it averages to 0."""
    program, particles = EXACT[name]
    for kw in [particles] if half.compiles else [ONE, LOOPED, VECTORISED]:
        objective = half.library.TraceMMD_ELBO(0.0, 2.0, **FEATURES, **kw)
        values = half.penalties(objective, program(half), count=30)
        assert averages_to(values, 0.0)
        assert values.std() > 0


@slow_in_numpyro
@pytest.mark.parametrize("kernel", ["RBF", "IMQ"])
def test_particles_and_masks_have_the_expectation_of_the_unbiased(half: Half, kernel: str) -> None:
    case = masked(half, covariate_prior(half), MASK, programs="both")
    found = []
    for settings in (FEATURES, {"estimator": "unbiased"}):
        objective = half.library.TraceMMD_ELBO(
            0.0, 2.0, getattr(half.library, kernel)(), **settings, **VECTORISED
        )
        found.append(half.penalties(objective, case, count=60))
    features, unbiased = found
    error = math.hypot(*map(standard_error, found))
    assert abs(features.mean() - unbiased.mean()) < 4 * error
    assert features.std() < unbiased.std()


@slow_in_numpyro
def test_the_rows_of_the_prior_may_be_written_out(half: Half) -> None:
    """One law for all rows gives what as many equal ones do, on the same frequencies."""
    objective = half.library.TraceMMD_ELBO(0.0, 2.0, **FEATURES)
    first, second = (
        half.steps([objective], shifted(half, prior_rows=rows))[0] for rows in (False, True)
    )
    assert second.loss == pytest.approx(first.loss, rel=1e-9)
    for name, grad in first.grads.items():
        np.testing.assert_allclose(second.grads[name], grad, rtol=1e-8)
        assert np.abs(grad).max() > 0


@slow_in_numpyro
def test_a_learned_prior_feels_the_penalty(half: Half) -> None:
    """Known by its scale and location, of which both have a gradient."""

    def model() -> None:
        loc, scale = half.param("prior_loc", 1.0), half.param("prior_scale", 0.6)
        with half.plate("data", 12):
            half.sample("z", half.dist.Normal(loc + half.xp.zeros(12), scale))

    def guide() -> None:
        with half.plate("data", 12):
            half.sample("z", half.dist.Normal(half.xp.zeros(12), 1.0))

    objective = half.library.TraceMMD_ELBO(1.0, 2.0, estimator="features", num_features=256)
    (step,) = half.steps([objective], Case(model, guide))
    assert step.grads["prior_loc"] > 0
    assert step.grads["prior_scale"] < 0

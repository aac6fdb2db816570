"""A row whose flow diverges does no harm to the others, and has weight 0 in evaluation."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pyro
import pytest

from pyro_infovae.compile import CompiledSVI
from tests.halves import Case, GivenArrays, Half
from tests.objectives.alone import in_pyro, slow_in_numpyro

STEEP = np.array([30.0, 0.1, 0.2, 0.3])
"""x ~ Normal(w z², 1) at x = 0: leapfrog steps of 0.3 run off in the first row alone."""
NOISE = np.array([1.0, -0.5, 0.3, 1.2]), np.array([0.3, 0.8, -1.0, 0.4])
SCALE = 0.8


def programs(half: Half, rows: np.ndarray) -> Case:
    w, num = half.xp.asarray(STEEP[rows]), len(rows)

    def model() -> None:
        with half.plate("data", num):
            z = half.sample("z", half.dist.Normal(0.0, 1.0))
            half.sample("x", half.dist.Normal(w * z**2, 1.0), obs=half.xp.zeros(num))

    def guide() -> None:
        loc = half.param("loc", np.zeros(num))
        scale = half.param("scale", SCALE, constraint=half.dist.constraints.positive)
        with half.plate("data", num):
            half.sample("z", half.dist.Normal(loc, scale))

    return Case(model, guide)


def log_normal(value: Any, loc: Any, scale: float) -> Any:
    return -0.5 * ((value - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))


@pytest.mark.filterwarnings("ignore:TraceHamiltonian_ELBO. the flow of 'z' diverged")
@slow_in_numpyro
def test_a_diverged_row_counts_by_the_guides_own_draw(half: Half) -> None:
    """The rest of the step is that of a minibatch without it; its own part is the stock ELBO's."""
    flow = half.library.TraceHamiltonian_ELBO(8, 0.3, path="posterior")
    steps = []
    for rows in (np.arange(4), np.arange(1, 4)):
        given = [noise[rows] for noise in NOISE]
        case = programs(half, rows)
        steps += half.steps([flow], case, draws=lambda given=given: GivenArrays(*given, *given))
    whole, others = steps
    z = SCALE * NOISE[0][0]
    own = log_normal(z, 0, SCALE) - log_normal(z, 0, 1) - log_normal(0, STEEP[0] * z**2, 1)
    assert whole.loss - others.loss == pytest.approx(own, rel=1e-9)
    slope = z + 2 * STEEP[0] ** 2 * z**3
    assert whole.grads["loc"][0] == pytest.approx(slope, rel=1e-9)
    np.testing.assert_allclose(whole.grads["loc"][1:], others.grads["loc"], rtol=1e-9)
    # In the unconstrained scale, whose logarithm it is.
    own_in_scale = z * slope - 1
    assert whole.grads["scale"] - others.grads["scale"] == pytest.approx(own_in_scale, rel=1e-9)
    step_sizes = [step.grads["hamiltonian.step_size"] for step in steps]
    np.testing.assert_allclose(*step_sizes, rtol=1e-9)


def test_a_diverged_draw_has_weight_0(half: Half) -> None:
    """The mean weight is the evidence, by quadrature, though the tails of the guide diverge."""
    steepness = 3.0

    def model() -> None:
        z = half.sample("z", half.dist.Normal(0.0, 1.0))
        half.sample("x", half.dist.Normal(steepness * z**2, 1.0), obs=half.xp.asarray(1.0))

    def guide() -> None:
        half.sample("z", half.dist.Normal(0.0, 1.0))

    flow = half.library.TraceHamiltonian_ELBO(8, 0.15, learn=False, path="posterior")
    log_weights = half.log_weights(flow, Case(model, guide), draws=20_000)
    assert np.isneginf(log_weights).mean() > 0.01
    assert not np.isnan(log_weights).any()
    grid = np.linspace(-8, 8, 20_001)
    joint = np.exp(log_normal(grid, 0, 1) + log_normal(1, steepness * grid**2, 1))
    weights = np.exp(log_weights) / (joint.sum() * (grid[1] - grid[0]))
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.02
    assert abs(weights.mean() - 1) < 4 * error


@in_pyro
def test_a_step_with_a_diverged_row_trains_every_parameter(half: Half) -> None:
    flow = half.library.TraceHamiltonian_ELBO(8, 0.3, path="posterior")
    with pytest.warns(UserWarning, match=r"of 'z' diverged in 1 of 4 rows.*lower step_size"):
        trained = half.trained(flow, programs(half, np.arange(4)), steps=3)
    assert np.isfinite(trained.losses).all()
    assert (np.abs(trained.params["loc"]) > 1e-3).all()
    assert abs(trained.params["hamiltonian.step_size"] - 0.3) > 1e-3


@in_pyro
@pytest.mark.slow
def test_a_captured_step_is_pyros_where_a_row_diverges(half: Half) -> None:
    losses = []
    for kind in (pyro.infer.SVI, CompiledSVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        case = programs(half, np.arange(4))
        flow = half.library.TraceHamiltonian_ELBO(8, 0.06, path="posterior")
        svi = kind(case.model, case.guide, pyro.optim.Adam({"lr": 1e-2}), loss=flow)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses.append([svi.step() for _ in range(12)])
        assert 0 < len([w for w in caught if "diverged in" in str(w.message)]) < 12
    np.testing.assert_allclose(*losses, rtol=1e-9)

"""The gradients of TraceHamiltonian_ELBO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpyro.infer import Trace_ELBO

from numpyro_backend import TraceHamiltonian_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import assert_gradients, fixed, warm
from tests.numpyro_backend.steps import PARTICLES, assert_same_step

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_a_step_of_zero_is_the_stock_elbo_over_mapped_particles() -> None:
    ours = fixed(step_size=0.0, tempering="none", **PARTICLES["mapped"])
    assert_same_step(ours, Trace_ELBO(**PARTICLES["mapped"]), programs.nested())


@pytest.mark.parametrize(
    ("tempering", "per_step"),
    [("quadratic", True), ("free", False), (warm, False)],
    ids=["quadratic", "free", "callable"],
)
def test_equal_finite_differences(tempering: Any, per_step: bool) -> None:
    step_size = np.array([[0.1, 0.2]] * 3 if per_step else 0.1)
    elbo = TraceHamiltonian_ELBO(3, step_size, per_step=per_step, tempering=tempering)
    grads = assert_gradients(programs.vae(num=6, batch=4), elbo)
    temperature = "tempering_factors" if tempering == "free" else "beta_0"
    flow = {"hamiltonian.step_size", f"hamiltonian.{temperature}"}
    assert grads.keys() == {"encoder", "scale", "decoder"} | flow
    assert all(np.any(grad != 0) for grad in grads.values())


def test_reach_a_latent_that_stays_through_the_flow() -> None:
    """θ is drawn by the guide and conditions the flow of z: its gradient runs through both."""
    step_size = {"z": 0.2}
    elbo = TraceHamiltonian_ELBO(3, step_size, sites="z", name="flow")
    grads = assert_gradients(programs.hierarchical(num=4), elbo)
    assert {"theta_loc", "weight", "flow.step_size_z", "flow.beta_0"} == grads.keys()

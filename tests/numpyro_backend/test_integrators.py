"""The same flow as NumPyro's integrator takes, and the errors of the PyTorch half."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array
from numpyro.infer import hmc_util

import numpyro_backend._arrays.checkpointing as checkpointing
import numpyro_backend.integrators as integrators
import numpyro_backend.tempering as tempering
import pyro_infovae._arrays.checkpointing as torch_checkpointing
import pyro_infovae.integrators as torch_integrators
from tests.numpyro_backend.error_messages import message_of
from tests.numpyro_backend.potentials import (
    NUM_STEPS,
    SCHEDULES,
    force,
    quartic,
    random_state,
    step_sizes,
)

pytestmark = pytest.mark.usefixtures("strict_ranks", "double_precision")


@pytest.mark.parametrize(
    ("schedule", "kind"), [("quadratic", "step and dimension"), ("constant", "number")]
)
def test_jacobian_determinant(schedule: str, kind: str) -> None:
    step_size, per_step = step_sizes(kind)
    beta = tempering.inverse_temperatures(0.3, NUM_STEPS, SCHEDULES[schedule])

    def flow(state: Array) -> Array:
        u, rho, _ = integrators.tempered_leapfrog(
            {"a": state[:2], "b": state[2]},
            {"a": state[3:5], "b": state[5]},
            force(quartic),
            beta,
            step_size=step_size,
            per_step=per_step,
        )
        return jnp.concatenate([u["a"], u["b"][None], rho["a"], rho["b"][None]])

    jacobian = jax.jit(jax.jacfwd(flow))(jnp.array([0.3, -0.5, 0.8, 0.4, 1.1, -0.7]))
    expected = (beta[0] / beta[-1]) ** (3 / 2)
    np.testing.assert_allclose(np.linalg.det(jacobian), expected, rtol=1e-10)


def test_values_are_numpyros_own() -> None:
    u, rho = jax.tree.map(jnp.asarray, random_state())
    start, update = hmc_util.velocity_verlet(
        quartic, lambda _, r: sum(0.5 * (x**2).sum() for x in r.values())
    )
    state = start(u, rho)
    for _ in range(5):
        state = update(0.13, None, state)
    beta = tempering.inverse_temperatures(1.0, 5, "none")
    ours = integrators.tempered_leapfrog(u, rho, force(quartic), beta, step_size=0.13)
    for actual, expected in zip(ours, (state.z, state.r, state.potential_energy), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), actual, expected)


def test_numpyros_module_is_untouched() -> None:
    assert hmc_util.velocity_verlet.__globals__ is vars(hmc_util)
    assert hmc_util._value_and_grad.__module__ == "numpyro.infer.hmc_util"


def test_single_precision_stays_single() -> None:
    u, rho = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_state())
    beta = tempering.inverse_temperatures(0.3, NUM_STEPS)
    end = integrators.tempered_leapfrog(u, rho, force(quartic), beta, step_size=0.1)
    assert {x.dtype for x in jax.tree.leaves(end)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "change",
    [
        {"rho": {"a": np.ones((5, 2))}},
        {"rho": {"a": np.ones((5, 2)), "b": np.ones((5, 1))}},
        {"inverse_temperatures": np.ones(1)},
        {"step_size": {"a": 0.1}},
        {"step_size": {"a": np.ones(3), "b": 0.1}},
        {"step_size": {"a": 0.1, "b": np.ones((2, 5))}},
        {"step_size": 0.1, "per_step": True},
        {"step_size": np.ones(3), "per_step": True},
        {"step_size": {"a": np.ones((4, 3)), "b": np.ones(4)}, "per_step": True},
    ],
)
def test_flow_errors_are_the_other_halfs(change: dict[str, Any]) -> None:
    u, rho = random_state()
    arguments = {
        "u": u,
        "rho": rho,
        "inverse_temperatures": np.ones(NUM_STEPS + 1),
        "step_size": 0.1,
    } | change

    def converted(convert: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        return jax.tree.map(lambda x: convert(x) if isinstance(x, np.ndarray) else x, arguments)

    assert message_of(
        lambda: integrators.tempered_leapfrog(
            potential_grad=force(quartic), **converted(jnp.asarray)
        )
    ) == message_of(
        lambda: torch_integrators.tempered_leapfrog(
            potential_grad=force(quartic), **converted(torch.from_numpy)
        )
    )


def test_a_function_that_is_no_scalar() -> None:
    assert message_of(
        lambda: checkpointing.checkpointed_gradient(lambda z: z**2, (jnp.ones(3),))
    ) == message_of(
        lambda: torch_checkpointing.checkpointed_gradient(lambda z: z**2, (torch.ones(3),))
    )

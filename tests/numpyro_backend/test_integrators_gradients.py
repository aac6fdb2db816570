"""The gradients of the flow are those of the PyTorch half, and what they cost."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

import numpyro_backend.integrators as integrators
import numpyro_backend.tempering as tempering
import pyro_infovae.integrators as torch_integrators
import pyro_infovae.tempering as torch_tempering
from tests.numpyro_backend.potentials import (
    EXAMPLES,
    NUM_STEPS,
    SCHEDULES,
    Sites,
    force,
    quartic,
    random_state,
    step_sizes,
)
from tests.pyro_infovae.potentials import recomputed

pytestmark = pytest.mark.usefixtures("strict_ranks")
quick = pytest.mark.usefixtures("quick_double_precision")


def to_torch(tree: Any) -> Any:
    return jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), tree)


@quick
@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        ("quadratic", "step and dimension"),
        pytest.param("callable", "number", marks=pytest.mark.slow),
        pytest.param("constant", "step", marks=pytest.mark.slow),
        ("none", "dimension"),
    ],
)
@EXAMPLES
@given(seed=st.integers(0, 2**16), beta_0=st.floats(0.05, 1.0))
def test_flow_and_all_its_gradients_equal_the_other_half(
    schedule: str, kind: str, seed: int, beta_0: float
) -> None:
    step_size, _ = step_sizes(kind)
    weight = 0.5 * np.random.default_rng([seed, 1]).normal(size=(2, 3))
    arguments = (*random_state(seed), step_size, beta_0, weight)
    value, gradients = compiled_flow(schedule, kind)(jax.tree.map(jnp.asarray, arguments))

    tensors = to_torch(arguments)
    other = flow_loss(
        torch_integrators,
        recomputed,
        torch_tempering,
        schedule,
        kind,
        tensors,
    )
    np.testing.assert_allclose(value, other.detach(), rtol=1e-12)
    other.backward()
    leaves, others = jax.tree.leaves(gradients), jax.tree.leaves(tensors)
    assert len(leaves) == len(others) >= 7
    for ours, theirs in zip(leaves, others, strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


@cache
def compiled_flow(schedule: str, kind: str) -> Callable[..., Any]:
    halves = integrators, force, tempering
    return jax.jit(
        jax.value_and_grad(lambda arguments: flow_loss(*halves, schedule, kind, arguments))
    )


def flow_loss(
    integrators: Any,
    force: Callable[[Callable[[Sites], Any]], Any],
    schedules: Any,
    schedule: str,
    kind: str,
    arguments: Any,
) -> Any:
    """A scalar of everything that a flow in a nonlinear potential returns, in either half."""
    u, rho, step_size, beta_0, weight = arguments

    def potential(u: Sites) -> Any:
        return quartic(u) + ((u["a"] @ weight) ** 2).sum()

    u, rho, energy = integrators.tempered_leapfrog(
        u,
        rho,
        force(potential),
        schedules.inverse_temperatures(beta_0, NUM_STEPS, SCHEDULES[schedule]),
        step_size=step_size,
        per_step=step_sizes(kind)[1],
    )
    ends = [(x**2).sum() * (i + 1) for i, x in enumerate([*u.values(), *rho.values()])]
    return sum(ends) + energy


@quick
def test_steps_cost_one_gradient_each_and_one_more() -> None:
    calls: list[int] = []

    def counted(u: Sites) -> tuple[Sites, Array]:
        jax.debug.callback(lambda: calls.append(1))
        return force(quartic)(u)

    u, rho = jax.tree.map(jnp.asarray, random_state())
    beta = tempering.inverse_temperatures(0.3, NUM_STEPS)
    flow = jax.jit(lambda: integrators.tempered_leapfrog(u, rho, counted, beta, step_size=0.1))
    jax.block_until_ready(flow())
    jax.effects_barrier()
    assert len(calls) == NUM_STEPS + 1


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("checkpoint", [True, False])
def test_memory_of_ten_steps_is_that_of_one(checkpoint: bool) -> None:
    def temporary_bytes(num_steps: int) -> int:
        def loss(u: Array, decoder: Mapping[str, Array], data: Array) -> Array:
            def potential(u: Sites) -> Array:
                hidden = jnp.tanh(u["z"] @ decoder["hidden"])
                return ((hidden @ decoder["out"] - data) ** 2).sum() + 0.5 * (u["z"] ** 2).sum()

            gradient = force(potential)
            u, rho, _ = integrators.tempered_leapfrog(
                {"z": u},
                {"z": jnp.ones_like(u)},
                jax.checkpoint(gradient) if checkpoint else gradient,
                tempering.inverse_temperatures(0.3, num_steps),
                step_size=0.01,
            )
            return (u["z"] ** 2).sum() + (rho["z"] ** 2).sum()

        decoder = {"hidden": jnp.ones((4, 64)), "out": jnp.ones((64, 128))}
        arguments = jnp.ones((256, 4)), decoder, jnp.ones((256, 128))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert (temporary_bytes(10) < 1.3 * temporary_bytes(1)) is checkpoint

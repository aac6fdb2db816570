"""The same schedules and the same flow as the PyTorch half, and what only JAX can get wrong."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from numpyro.infer import hmc_util

import numpyro_backend._arrays.checkpointing as checkpointing
import numpyro_backend.integrators as integrators
import numpyro_backend.tempering as tempering
import pyro_infovae._arrays.checkpointing as torch_checkpointing
import pyro_infovae.integrators as torch_integrators
import pyro_infovae.tempering as torch_tempering

pytestmark = pytest.mark.usefixtures("strict_ranks")

EXAMPLES = settings(deadline=None, max_examples=10, derandomize=True)
Sites = dict[str, Any]
NUM_STEPS = 4
SCHEDULES: dict[str, Any] = {
    "quadratic": "quadratic",
    "constant": "constant",
    "none": "none",
    "callable": lambda beta_0, k, num_steps: beta_0 ** (1 - k / num_steps),
}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def random_state(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    u, rho = ({"a": rng.normal(size=(5, 2)), "b": rng.normal(size=5)} for _ in range(2))
    return u, rho


def quartic(u: Sites) -> Any:
    """A nonlinear potential that couples its two sites, row by row, in either framework."""
    sine = torch.sin if isinstance(u["b"], torch.Tensor) else jnp.sin
    return (
        (0.5 * u["a"] ** 2).sum() + (u["b"] ** 4 / 4).sum() + (u["a"].sum(-1) * sine(u["b"])).sum()
    )


def force(potential: Callable[[Sites], Array]) -> Callable[[Sites], tuple[Sites, Array]]:
    def potential_grad(u: Sites) -> tuple[Sites, Array]:
        energy, gradient = jax.value_and_grad(potential)(u)
        return gradient, energy

    return potential_grad


def recomputed(potential: Callable[[Sites], Any], checkpointed_gradient: Any) -> Any:
    def potential_grad(u: Sites) -> tuple[Sites, Any]:
        gradients, energy = checkpointed_gradient(
            lambda *values: potential(dict(zip(u, values, strict=True))), tuple(u.values())
        )
        return dict(zip(u, gradients, strict=True)), energy

    return potential_grad


def to_torch(tree: Any) -> Any:
    return jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), tree)


def step_sizes(kind: str) -> tuple[Any, bool]:
    return {
        "number": (0.1, False),
        "dimension": ({"a": np.array([0.05, 0.3]), "b": np.array(0.2)}, False),
        "step": (np.array([0.1, 0.2, 0.05, 0.15]), True),
        "step and dimension": (
            {"a": np.linspace(0.05, 0.3, 8).reshape(4, 2), "b": np.linspace(0.1, 0.2, 4)},
            True,
        ),
    }[kind]


@pytest.mark.parametrize("schedule", SCHEDULES)
@EXAMPLES
@given(beta_0=st.floats(0.01, 1.0))
def test_schedules_equal_the_other_half(schedule: str, beta_0: float) -> None:
    ours = tempering.inverse_temperatures(beta_0, NUM_STEPS, SCHEDULES[schedule])
    theirs = torch_tempering.inverse_temperatures(beta_0, NUM_STEPS, SCHEDULES[schedule])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    slope = jax.jacobian(
        lambda b: tempering.inverse_temperatures(b, NUM_STEPS, SCHEDULES[schedule])
    )(beta_0)
    other_slope = torch.autograd.functional.jacobian(
        lambda b: torch_tempering.inverse_temperatures(b, NUM_STEPS, SCHEDULES[schedule]),
        torch.tensor(beta_0),
    )
    np.testing.assert_allclose(slope, other_slope, rtol=1e-12, atol=1e-12)


@EXAMPLES
@given(values=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=6))
def test_free_schedule_equals_the_other_half(values: list[float]) -> None:
    factors = np.array(values)
    np.testing.assert_allclose(
        tempering.free_inverse_temperatures(jnp.asarray(factors)),
        torch_tempering.free_inverse_temperatures(torch.from_numpy(factors)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        jax.jacobian(tempering.free_inverse_temperatures)(jnp.asarray(factors)),
        torch.autograd.functional.jacobian(
            torch_tempering.free_inverse_temperatures, torch.from_numpy(factors)
        ),
        rtol=1e-12,
        atol=1e-12,
    )


def test_quadratic_ends_at_exactly_one() -> None:
    for beta_0 in np.linspace(0.01, 1.0, 50, dtype=np.float32):
        beta = tempering.inverse_temperatures(beta_0, 7)
        assert beta.dtype == jnp.float32
        assert beta[-1] == 1


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        ("quadratic", "step and dimension"),
        ("callable", "number"),
        ("constant", "step"),
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
        torch_checkpointing.checkpointed_gradient,
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
    halves = integrators, checkpointing.checkpointed_gradient, tempering
    return jax.jit(
        jax.value_and_grad(lambda arguments: flow_loss(*halves, schedule, kind, arguments))
    )


def flow_loss(
    integrators: Any,
    checkpointed_gradient: Any,
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
        recomputed(potential, checkpointed_gradient),
        schedules.inverse_temperatures(beta_0, NUM_STEPS, SCHEDULES[schedule]),
        step_size=step_size,
        per_step=step_sizes(kind)[1],
    )
    ends = [(x**2).sum() * (i + 1) for i, x in enumerate([*u.values(), *rho.values()])]
    return sum(ends) + energy


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


def test_steps_cost_one_gradient_each_and_one_more() -> None:
    calls: list[int] = []

    def counted(u: Sites) -> tuple[Sites, Array]:
        jax.debug.callback(lambda: calls.append(1))
        return force(quartic)(u)

    u, rho = jax.tree.map(jnp.asarray, random_state())
    beta = tempering.inverse_temperatures(0.3, NUM_STEPS)
    jax.block_until_ready(integrators.tempered_leapfrog(u, rho, counted, beta, step_size=0.1))
    jax.effects_barrier()
    assert len(calls) == NUM_STEPS + 1


@pytest.mark.parametrize("constant", [True, False])
def test_memory_of_ten_steps_is_that_of_one(
    constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not constant:
        monkeypatch.setattr(jax, "checkpoint", lambda function, **_: function)

    def temporary_bytes(num_steps: int) -> int:
        def loss(u: Array, decoder: Mapping[str, Array], data: Array) -> Array:
            def potential(u: Sites) -> Array:
                hidden = jnp.tanh(u["z"] @ decoder["hidden"])
                return ((hidden @ decoder["out"] - data) ** 2).sum() + 0.5 * (u["z"] ** 2).sum()

            u, rho, _ = integrators.tempered_leapfrog(
                {"z": u},
                {"z": jnp.ones_like(u)},
                recomputed(potential, checkpointing.checkpointed_gradient),
                tempering.inverse_temperatures(0.3, num_steps),
                step_size=0.01,
            )
            return (u["z"] ** 2).sum() + (rho["z"] ** 2).sum()

        decoder = {"hidden": jnp.ones((4, 64)), "out": jnp.ones((64, 128))}
        arguments = jnp.ones((256, 4)), decoder, jnp.ones((256, 128))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert (temporary_bytes(10) < 1.3 * temporary_bytes(1)) is constant


def test_single_precision_stays_single() -> None:
    u, rho = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_state())
    beta = tempering.inverse_temperatures(0.3, NUM_STEPS)
    end = integrators.tempered_leapfrog(u, rho, force(quartic), beta, step_size=0.1)
    assert {x.dtype for x in jax.tree.leaves(end)} == {jnp.dtype(jnp.float32)}


def test_torch_is_not_imported() -> None:
    command = (
        "import sys, numpyro_backend.tempering, numpyro_backend.integrators, "
        "numpyro_backend._arrays.checkpointing; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match="Expected") as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 3),
        (1.5, 3),
        (math.nan, 3),
        (np.ones(2), 3),
        (0.3, 0),
        (0.3, 3, "cubic"),
        (0.3, 3, "free"),
        (0.3, 3, lambda b, k, n: -1.0),
        (0.3, 3, lambda b, k, n: 1.0 if k < 2 else math.inf),
        (0.3, 3, lambda b, k, n: b[None]),
    ],
)
def test_schedule_errors_are_the_other_halfs(arguments: tuple[Any, ...]) -> None:
    other = tuple(torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments)
    assert message(lambda: tempering.inverse_temperatures(*arguments)) == message(
        lambda: torch_tempering.inverse_temperatures(*other)
    )


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_factor_errors_are_the_other_halfs(shape: tuple[int, ...]) -> None:
    assert message(lambda: tempering.free_inverse_temperatures(jnp.ones(shape))) == message(
        lambda: torch_tempering.free_inverse_temperatures(torch.ones(shape))
    )


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

    assert message(
        lambda: integrators.tempered_leapfrog(
            potential_grad=force(quartic), **converted(jnp.asarray)
        )
    ) == message(
        lambda: torch_integrators.tempered_leapfrog(
            potential_grad=force(quartic), **converted(torch.from_numpy)
        )
    )


def test_a_function_that_is_no_scalar() -> None:
    assert message(
        lambda: checkpointing.checkpointed_gradient(lambda z: z**2, (jnp.ones(3),))
    ) == message(
        lambda: torch_checkpointing.checkpointed_gradient(lambda z: z**2, (torch.ones(3),))
    )

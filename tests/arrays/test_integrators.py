"""The flow against closed forms, each framework's integrator, and its Jacobian."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpyro.infer import hmc_util
from pyro.ops import integrator
from torch import Tensor

import tests.numpyro_backend.potentials as numpyros
from pyro_infovae.integrators import tempered_leapfrog
from pyro_infovae.tempering import free_inverse_temperatures, inverse_temperatures
from tests.arrays.libraries import JAX, Library
from tests.pyro_infovae.potentials import Sites, force_of, quartic, recomputed

BETAS = {
    "none": inverse_temperatures(1.0, 4, "none"),
    "quadratic": inverse_temperatures(0.3, 4, "quadratic"),
    "constant": inverse_temperatures(0.3, 4, "constant"),
    "callable": inverse_temperatures(0.3, 4, lambda b, k, n: 0.9 * b ** (1 - k / n)),
    "free": free_inverse_temperatures(torch.tensor([0.9, 0.6, 0.8, 0.7])),
}
BETAS = {name: beta.double() for name, beta in BETAS.items()}


def step_sizes(kind: str) -> tuple[float | Tensor | dict[str, float | Tensor], bool]:
    per_dimension = torch.tensor([0.05, 0.3])
    return {
        "number": (0.1, False),
        "scalar": (torch.tensor(0.1), False),
        "site": ({"a": 0.1, "b": torch.tensor(0.2)}, False),
        "dimension": ({"a": per_dimension, "b": torch.tensor(0.2)}, False),
        "step": (torch.tensor([0.1, 0.2, 0.05, 0.15]), True),
        "step and dimension": (
            {"a": torch.linspace(0.05, 0.3, 8).reshape(4, 2), "b": torch.linspace(0.1, 0.2, 4)},
            True,
        ),
    }[kind]


STEPS = ("number", "scalar", "site", "dimension", "step", "step and dimension")


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("tempering", BETAS)
def test_jacobian_determinant(tempering: str, kind: str) -> None:
    """By fourth-order central differences, one row per shifted point."""
    beta = BETAS[tempering]
    step_size, per_step = step_sizes(kind)
    start = torch.tensor([0.3, -0.5, 0.8, 0.4, 1.1, -0.7])
    weights = torch.tensor([1.0, -8.0, 8.0, -1.0]) / 12
    h = 1e-3
    shifts = h * torch.tensor([-2.0, -1.0, 1.0, 2.0])
    points = start + shifts[:, None, None] * torch.eye(6)

    u, rho, _ = tempered_leapfrog(
        {"a": points[..., 0:2], "b": points[..., 2]},
        {"a": points[..., 3:5], "b": points[..., 5]},
        force_of(quartic),
        beta,
        step_size=step_size,
        per_step=per_step,
    )
    ends = torch.cat([u["a"], u["b"][..., None], rho["a"], rho["b"][..., None]], -1).detach()
    jacobian = torch.einsum("s,sij->ji", weights, ends) / h
    expected = (beta[0] / beta[-1]) ** (3 / 2)
    torch.testing.assert_close(torch.linalg.det(jacobian), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("tempering", BETAS)
def test_oscillator_is_a_product_of_matrices(tempering: str) -> None:
    beta = BETAS[tempering].numpy()
    frequency = np.array([1.0, 2.5, 0.3])
    epsilon = np.linspace(0.1, 0.5, 12).reshape(4, 3)
    expected = np.empty((2, 3))
    for i in range(3):
        state = np.array([0.7, -0.4])
        for k in range(4):
            e, w2 = epsilon[k, i], frequency[i] ** 2
            c = 1 - e**2 * w2 / 2
            step = np.array([[c, e], [-e * w2 * (1 - e**2 * w2 / 4), c]])
            state = np.diag([1.0, math.sqrt(beta[k] / beta[k + 1])]) @ step @ state
        expected[:, i] = state

    stiffness = torch.from_numpy(frequency) ** 2
    u, rho, energy = tempered_leapfrog(
        {"z": torch.full((3,), 0.7)},
        {"z": torch.full((3,), -0.4)},
        force_of(lambda u: 0.5 * (stiffness * u["z"] ** 2).sum()),
        BETAS[tempering],
        step_size=torch.from_numpy(epsilon),
        per_step=True,
    )
    np.testing.assert_allclose(u["z"].detach(), expected[0], rtol=1e-13)
    np.testing.assert_allclose(rho["z"].detach(), expected[1], rtol=1e-13)
    np.testing.assert_allclose(
        energy.detach(), (0.5 * frequency**2 * expected[0] ** 2).sum(), rtol=1e-13
    )


def untempered(
    potential: Callable[[Sites], Tensor], u: Sites, rho: Sites, time: float, num_steps: int
) -> tuple[Sites, Sites]:
    beta = inverse_temperatures(1.0, num_steps, "none")
    with torch.no_grad():
        u, rho, _ = tempered_leapfrog(u, rho, force_of(potential), beta, step_size=time / num_steps)
    return u, rho


def test_oscillator_converges_at_second_order() -> None:
    def error(num_steps: int) -> float:
        start = {"z": torch.tensor(0.7)}, {"z": torch.tensor(-0.4)}
        u, rho = untempered(lambda u: 0.5 * u["z"] ** 2, *start, 1.3, num_steps)
        c, s = math.cos(1.3), math.sin(1.3)
        return math.hypot(u["z"] - (0.7 * c - 0.4 * s), rho["z"] - (-0.7 * s - 0.4 * c))

    assert error(20) < 1e-3
    assert error(20) / error(40) == pytest.approx(4, rel=0.01)


def test_free_fall_is_exact() -> None:
    height, velocity = torch.tensor([10.0, 20.0]), torch.tensor([3.0, -1.0])
    u, rho = untempered(lambda u: 9.8 * u["z"].sum(), {"z": height}, {"z": velocity}, 1.2, 7)
    torch.testing.assert_close(u["z"], height + velocity * 1.2 - 9.8 * 1.2**2 / 2)
    torch.testing.assert_close(rho["z"], velocity - 9.8 * 1.2)


def test_energy_drift_is_of_second_order() -> None:
    def largest_drift(num_steps: int) -> float:
        u = {"a": torch.tensor([[0.3, -0.5]]), "b": torch.tensor([0.8])}
        rho = {"a": torch.tensor([[0.4, 1.1]]), "b": torch.tensor([-0.7])}

        def energy() -> float:
            return float(quartic(u) + sum(0.5 * (r**2).sum() for r in rho.values()))

        start, drift = energy(), 0.0
        for _ in range(num_steps):
            u, rho = untempered(quartic, u, rho, 4.0 / num_steps, 1)
            drift = max(drift, abs(energy() - start))
        return drift

    assert largest_drift(100) < 5e-3
    assert largest_drift(100) / largest_drift(200) == pytest.approx(4, rel=0.05)


def test_reversible() -> None:
    u = {"a": torch.tensor([[0.3, -0.5]]), "b": torch.tensor([0.8])}
    rho = {"a": torch.tensor([[0.4, 1.1]]), "b": torch.tensor([-0.7])}
    there, momentum = untempered(quartic, u, rho, 1.5, 10)
    assert (there["a"] - u["a"]).abs().min() > 0.1
    back, _ = untempered(quartic, there, {s: -r for s, r in momentum.items()}, 1.5, 10)
    torch.testing.assert_close(back, u, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_pyros_bit_for_bit(dtype: torch.dtype) -> None:
    def state() -> tuple[Sites, Sites]:
        generator = torch.Generator().manual_seed(1)
        draw = partial(torch.randn, generator=generator, dtype=dtype)
        return {"a": draw(5, 2), "b": draw(5)}, {"a": draw(5, 2), "b": draw(5)}

    z, r, _, energy = integrator.velocity_verlet(*state(), quartic, lambda r: r, 0.13, 5)
    beta = inverse_temperatures(1.0, 5, "none")
    for force in (force_of(quartic), recomputed(quartic)):
        u, rho, potential = tempered_leapfrog(*state(), force, beta.to(dtype), step_size=0.13)
        assert all(torch.equal(u[site], z[site]) for site in z)
        assert all(torch.equal(rho[site], r[site]) for site in r)
        assert torch.equal(potential, energy)


def test_pyros_module_is_untouched() -> None:
    weight = torch.ones(3, requires_grad=True)

    def potential(z: Sites) -> Tensor:
        return (weight * z["z"] ** 2).sum()

    z, r, beta = {"z": torch.ones(3)}, {"z": torch.ones(3)}, inverse_temperatures(1.0, 1, "none")
    _, ours, _ = tempered_leapfrog(z, r, force_of(potential), beta, step_size=0.1)
    ours["z"].sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().min() > 0.1
    _, pyros, _, _ = integrator.velocity_verlet(z, r, potential, lambda r: r, 0.1)
    assert not pyros["z"].requires_grad
    assert integrator.velocity_verlet.__globals__ is vars(integrator)
    assert integrator._single_step_verlet.__globals__ is vars(integrator)


def test_importance_weights_of_the_flow_are_unbiased() -> None:
    """E[w] = p(x), for z ~ N(0, I), x | z ~ N(Az, I/4) and q(u_0) = N(0, I)."""
    num_draws, d, beta = 200_000, 3, inverse_temperatures(torch.tensor(0.3), 5)
    loading, x = torch.randn(4, d), torch.tensor([0.5, -1.0, 0.3, 0.8])
    normal = torch.distributions.Normal(0.0, 1.0)

    def log_joint(u: Tensor) -> Tensor:
        likelihood = torch.distributions.Normal(u @ loading.T, 0.5).log_prob(x)
        return normal.log_prob(u).sum(-1) + likelihood.sum(-1)

    u_0, rho_0 = torch.randn(num_draws, d), torch.randn(num_draws, d) / beta[0].sqrt()
    with torch.no_grad():
        u, rho, _ = tempered_leapfrog(
            {"z": u_0},
            {"z": rho_0},
            recomputed(lambda u: -log_joint(u["z"]).sum()),
            beta,
            step_size=0.2,
        )
    start = torch.distributions.Normal(0.0, beta[0].rsqrt()).log_prob(rho_0)
    log_w = (
        log_joint(u["z"])
        + normal.log_prob(rho["z"]).sum(-1)
        - normal.log_prob(u_0).sum(-1)
        - start.sum(-1)
        + d / 2 * (beta[0] / beta[-1]).log()
    )
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(4), loading @ loading.T + 0.25 * torch.eye(4)
    ).log_prob(x)
    weights = (log_w - evidence).exp()
    standard_error = weights.std() / num_draws**0.5
    assert standard_error < 0.01
    assert (weights.mean() - 1).abs() < 4 * standard_error
    assert log_w.mean() < evidence


def test_rows_do_not_touch_each_other() -> None:
    u, rho = {"a": torch.randn(6, 2), "b": torch.randn(6)}, {"a": torch.randn(6, 2)}
    rho["b"] = torch.randn(6)
    flow = partial(tempered_leapfrog, potential_grad=force_of(quartic), step_size=0.2)
    together, _, _ = flow(u, rho, inverse_temperatures=BETAS["quadratic"])
    for i in range(6):
        alone, _, _ = flow(
            {s: x[i : i + 1] for s, x in u.items()},
            {s: x[i : i + 1] for s, x in rho.items()},
            inverse_temperatures=BETAS["quadratic"],
        )
        torch.testing.assert_close(alone, {s: x[i : i + 1] for s, x in together.items()})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rho": {"a": np.ones((3, 2))}}, r"Expected rho of the sites \['a', 'b'\]; got \['a'\]"),
        (
            {"rho": {"a": np.ones((3, 2)), "b": np.ones((3, 1))}},
            r"Expected rho\['b'\] of shape \(3,\); got \(3, 1\)",
        ),
        (
            {"inverse_temperatures": np.ones(1)},
            r"Expected inverse_temperatures of shape \(num_steps \+ 1,\), .*; got \(1,\)",
        ),
        (
            {"step_size": {"a": 0.1}},
            r"Expected step_size of the sites \['a', 'b'\]; got \['a'\]",
        ),
        (
            {"step_size": {"a": np.ones(3), "b": 0.1}},
            r"Expected step_size of 'a' to broadcast to \(3, 2\); got shape \(3,\)",
        ),
        (
            {"step_size": {"a": 0.1, "b": np.ones((2, 3))}},
            r"Expected step_size of 'b' to broadcast to \(3,\); got shape \(2, 3\)",
        ),
        (
            {"step_size": 0.1, "per_step": True},
            r"Expected step_size of 'a' with a leading axis of 4 steps; got shape \(\)",
        ),
        (
            {"step_size": np.ones(3), "per_step": True},
            r"Expected step_size of 'a' with a leading axis of 4 steps; got shape \(3,\)",
        ),
        (
            {"step_size": {"a": np.ones((4, 3)), "b": np.ones(4)}, "per_step": True},
            r"Expected step_size of 'a' to broadcast to \(3, 2\); got shape \(3,\) in each step",
        ),
    ],
)
def test_invalid_arguments(library: Library, change: dict[str, Any], match: str) -> None:
    u = {"a": np.ones((3, 2)), "b": np.ones(3)}
    arguments = {"u": u, "rho": u, "inverse_temperatures": np.ones(5), "step_size": 0.1} | change
    converted = jax.tree.map(
        lambda value: library.array(value) if isinstance(value, np.ndarray) else value, arguments
    )
    with pytest.raises(ValueError, match=match):
        library.module("integrators").tempered_leapfrog(
            potential_grad=force_of(quartic), **converted
        )


# --- JAX ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("jax_active")
@pytest.mark.parametrize(
    ("schedule", "kind"), [("quadratic", "step and dimension"), ("constant", "number")]
)
def test_jacobian_determinant_in_jax(schedule: str, kind: str) -> None:
    step_size, per_step = numpyros.step_sizes(kind)
    beta = JAX.module("tempering").inverse_temperatures(0.3, 4, schedule)

    def flow(state: jax.Array) -> jax.Array:
        u, rho, _ = JAX.module("integrators").tempered_leapfrog(
            {"a": state[:2], "b": state[2]},
            {"a": state[3:5], "b": state[5]},
            numpyros.force(numpyros.quartic),
            beta,
            step_size=step_size,
            per_step=per_step,
        )
        return jnp.concatenate([u["a"], u["b"][None], rho["a"], rho["b"][None]])

    jacobian = jax.jit(jax.jacfwd(flow))(jnp.array([0.3, -0.5, 0.8, 0.4, 1.1, -0.7]))
    expected = (beta[0] / beta[-1]) ** (3 / 2)
    np.testing.assert_allclose(np.linalg.det(jacobian), expected, rtol=1e-10)


@pytest.mark.usefixtures("jax_active")
def test_values_are_numpyros_own() -> None:
    u, rho = jax.tree.map(jnp.asarray, numpyros.random_state())

    @jax.jit
    def theirs() -> Any:
        start, update = hmc_util.velocity_verlet(
            numpyros.quartic, lambda _, r: sum(0.5 * (x**2).sum() for x in r.values())
        )
        state = start(u, rho)
        for _ in range(5):
            state = update(0.13, None, state)
        return state.z, state.r, state.potential_energy

    @jax.jit
    def ours() -> Any:
        beta = JAX.module("tempering").inverse_temperatures(1.0, 5, "none")
        force = numpyros.force(numpyros.quartic)
        return JAX.module("integrators").tempered_leapfrog(u, rho, force, beta, step_size=0.13)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-14), ours(), theirs())


def test_numpyros_module_is_untouched() -> None:
    JAX.module("integrators")
    assert hmc_util.velocity_verlet.__globals__ is vars(hmc_util)
    assert hmc_util._value_and_grad.__module__ == "numpyro.infer.hmc_util"


@pytest.mark.usefixtures("jax_active")
def test_single_precision_stays_single_in_jax() -> None:
    u, rho = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), numpyros.random_state())
    beta = JAX.module("tempering").inverse_temperatures(0.3, 4)
    flow = partial(JAX.module("integrators").tempered_leapfrog, step_size=0.1)
    end = jax.eval_shape(lambda: flow(u, rho, numpyros.force(numpyros.quartic), beta))
    assert {x.dtype for x in jax.tree.leaves(end)} == {jnp.dtype(jnp.float32)}

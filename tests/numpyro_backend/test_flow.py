"""The posterior that a flow follows: its force against closed forms, its steps against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from numpyro_backend import TraceHamiltonian_ELBO
from numpyro_backend._traces.flow import Posterior, isolated
from numpyro_backend._traces.initial_draw import InitialDraw

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class Started(NamedTuple):
    """The guide's draw, its positions, their Jacobian, the gradient there, and a move by 1."""

    values: dict[str, Array]
    positions: dict[str, Array]
    log_jacobian: dict[str, Array]
    gradient: dict[str, Array]
    moved: dict[str, Array]


def started(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    move: str | None = None,
    sites: frozenset[str] | None = None,
) -> Started:
    @jax.jit
    def start() -> Started:
        draw = InitialDraw(sites)
        with handlers.seed(rng_seed=0):
            with draw:
                guide(*args)
            plates = {name: site.plates for name, site in draw.flowing.items()}
            values = {name: site.value for name, site in draw.flowing.items()}
            given = {**draw.given, **draw.minibatches}
            program = isolated(model, args, {}, {**given, **values})
        posterior = Posterior(program, given, plates)
        placed = posterior.unconstrain(values)
        gradient, _ = posterior.potential_grad(placed.unconstrained)
        moved = {name: u + (name == move) for name, u in placed.unconstrained.items()}
        return Started(
            {**values, **draw.given},
            placed.unconstrained,
            placed.log_jacobian,
            gradient,
            posterior.constrain(moved).constrained,
        )

    return start()


def test_force_on_a_constrained_latent_has_the_jacobian() -> None:
    """rate ~ Gamma(a, b), x ~ Poisson(rate), u = log rate: ℓ = (a + x) u - (b + 1) exp(u)."""

    def model(x: float) -> None:
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        numpyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: float) -> None:
        numpyro.sample("rate", dist.LogNormal(0.4, 0.3))

    flow = started(model, guide, 4.0)
    u = flow.positions["rate"]
    np.testing.assert_allclose(u, np.log(flow.values["rate"]))
    np.testing.assert_allclose(flow.log_jacobian["rate"], u)
    np.testing.assert_allclose(flow.gradient["rate"], -(7 - 3 * np.exp(u)))


def test_force_is_each_datums_own_under_plates_scales_and_masks() -> None:
    """c log p(z) + log p(x | z) + log|J| per row, whatever N / B; nothing on a masked row."""
    mask = np.array([True, False, True, True])

    def model(x: Array) -> None:
        with numpyro.plate("data", 100, subsample_size=4), handlers.mask(mask=jnp.array(mask)):
            with handlers.scale(scale=0.3):
                rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
            numpyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Array) -> None:
        plate = numpyro.plate("data", 100, subsample_size=4)
        with plate, handlers.mask(mask=jnp.array(mask)), handlers.scale(scale=0.3):
            numpyro.sample("rate", dist.LogNormal(jnp.linspace(-0.5, 0.5, 4), 0.3))

    x = np.array([4.0, 1.0, 0.0, 2.0])
    flow = started(model, guide, x)
    u = np.log(flow.values["rate"])
    expected = 0.3 * (2 - 2 * np.exp(u)) + (x - np.exp(u)) + 1
    np.testing.assert_allclose(flow.gradient["rate"], -np.where(mask, expected, 0.0))


def test_a_support_that_depends_on_another_latent() -> None:
    """b ~ Uniform(0, a): where the flow moves a, b = T(u_b) moves with it."""

    def program() -> None:
        a = numpyro.sample("a", dist.LogNormal(0.0, 0.5))
        numpyro.sample("b", dist.Uniform(0.0, a))

    flow = started(program, program, move="a")
    np.testing.assert_allclose(flow.moved["a"], math.e * flow.values["a"])
    np.testing.assert_allclose(flow.moved["b"], math.e * flow.values["b"])


@pytest.mark.parametrize("sites", [None, frozenset({"theta"})], ids=["all", "theta alone"])
def test_forces_on_and_from_a_scan(sites: frozenset[str] | None) -> None:
    """θ ~ N(0, 1), v_t = log w_t ~ N(θ v_{t-1}, 1), x_t ~ N(v_t, 1), from v_0 = 1."""
    x = np.array([0.3, -0.4, 1.0, 0.2])

    def program(is_model: bool) -> Callable[[], None]:
        def run() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))

            def step(v: Array, x: Array) -> tuple[Array, None]:
                v = jnp.log(numpyro.sample("w", dist.LogNormal(theta * v, 1.0)))
                if is_model:
                    numpyro.sample("x", dist.Normal(v, 1.0), obs=x)
                return v, None

            scan(step, jnp.array(1.0), x)

        return run

    flow = started(program(True), program(False), sites=sites)
    theta, v = float(flow.values["theta"]), np.log(flow.values["w"])
    before = np.concatenate([[1.0], v[:-1]])
    residual = v - theta * before
    expected = {"theta": theta - residual @ before}
    if sites is None:
        expected["w"] = residual - theta * np.append(residual[1:], 0.0) - (x - v)
    assert flow.gradient.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(flow.gradient[name], gradient)


@pytest.mark.parametrize("per_step", [False, True])
def test_steps_and_log_weights_equal_a_loop(
    per_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """z ~ N(0, I), x | z ~ N(W z, 0.5), 4 rows of 100 with a masked one: written out in NumPy."""
    rng = np.random.default_rng(0)
    weight, x, noise = rng.normal(size=(3, 2)), rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    mask = np.array([True, True, False, True])
    step_size = np.array([[0.1, 0.2], [0.15, 0.05], [0.2, 0.1]])[: 3 if per_step else 1]
    num_steps, beta_0 = 3, 0.4

    def model() -> None:
        with numpyro.plate("data", 100, subsample_size=4), handlers.mask(mask=jnp.array(mask)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def guide() -> None:
        with numpyro.plate("data", 100, subsample_size=4), handlers.mask(mask=jnp.array(mask)):
            numpyro.sample("z", dist.Normal(0.3 * jnp.ones(2), 0.8).to_event(1))

    monkeypatch.setattr("numpyro_backend._traces.refined_guide._standard_normal", lambda _: noise)
    objective = TraceHamiltonian_ELBO(
        num_steps,
        step_size if per_step else step_size[0],
        beta_0=beta_0,
        per_step=per_step,
        learn=False,
    )

    @jax.jit
    def ours() -> tuple[Any, Any, Any]:
        guide_key = jax.random.split(jax.random.key(0))[1]
        start, end = (
            handlers.trace(handlers.seed(program, guide_key)).get_trace()["z"]["value"]
            for program in (guide, objective.refine(model, guide))
        )
        return start, end, objective.loss(jax.random.key(0), {}, model, guide)

    def log_normal(value: np.ndarray, loc: Any, scale: float) -> np.ndarray:
        terms = -0.5 * ((value - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))
        return terms.sum(-1)

    def force(u: np.ndarray) -> np.ndarray:
        return (-u + (x - u @ weight.T) @ weight / 0.25) * mask[:, None]

    def inverse_temperature(k: int) -> float:
        return ((1 - beta_0**-0.5) * (k / num_steps) ** 2 + beta_0**-0.5) ** -2

    start, end, loss = (np.asarray(part) for part in ours())
    u, rho_0 = start, noise / math.sqrt(beta_0)
    rho = rho_0
    for k in range(1, num_steps + 1):
        epsilon = step_size[k - 1 if per_step else 0]
        rho = rho + epsilon / 2 * force(u)
        u = u + epsilon * rho
        rho = rho + epsilon / 2 * force(u)
        rho = rho * math.sqrt(inverse_temperature(k - 1) / inverse_temperature(k))
    np.testing.assert_allclose(end, u, rtol=1e-12)
    log_weights = (
        log_normal(u, 0.0, 1.0)
        + log_normal(x, u @ weight.T, 0.5)
        + log_normal(rho, 0.0, 1.0)
        - log_normal(start, 0.3, 0.8)
        - log_normal(rho_0, 0.0, beta_0**-0.5)
        + math.log(beta_0)  # d / 2 = 1
    )
    assert loss == pytest.approx(-(log_weights * mask).sum() * 100 / 4, rel=1e-12)


def test_the_flow_leaves_no_trace_of_its_runs() -> None:
    """Parameters and mutable state are read once; the scored run alone changes the state."""

    def model() -> None:
        count = numpyro.primitives.mutable("count", {"runs": jnp.array(0)})
        count["runs"] += 1
        weight = numpyro.param("weight", lambda key: jax.random.normal(key))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("x", dist.Normal(weight * z, 1.0), obs=0.3)

    def guide() -> None:
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    state = {"count": {"runs": jnp.array(5)}}
    params = {"weight": jnp.array(0.5), **state}

    @jax.jit
    def run() -> tuple[Any, ...]:
        elbos = (TraceHamiltonian_ELBO(2, learn=False, num_particles=n) for n in (1, 2))
        results = (
            elbo.loss_with_mutable_state(jax.random.key(0), params, model, guide) for elbo in elbos
        )
        refined = handlers.seed(TraceHamiltonian_ELBO(2, learn=False).refine(model, guide), 0)
        sites = handlers.trace(handlers.substitute(refined, params)).get_trace()
        values = {name: site["value"] for name, site in sites.items()}
        return (values, *(result["mutable_state"] for result in results))

    values, *states = run()
    assert values.keys() == {"count", "weight", "z"}
    assert values["count"] == state["count"]
    assert states == [{"count": {"runs": 6}}] * 2


def test_a_plate_around_the_refined_guide_is_refused() -> None:
    def program() -> None:
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    refined = TraceHamiltonian_ELBO(learn=False).refine(program, program)

    def draws() -> None:
        with handlers.seed(rng_seed=0), numpyro.plate("draws", 3):
            refined()

    with pytest.raises(NotImplementedError, match="'draws', whose rows would share one draw"):
        jax.eval_shape(draws)

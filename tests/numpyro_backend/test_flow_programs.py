"""What of a flow is special to NumPyro: scans, keys, mutable state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive

from numpyro_backend import TraceHamiltonian_ELBO
from tests.halves import Case, NumbersOfShape
from tests.numpyro_backend.half import NUMPYRO
from tests.numpyro_backend.runs import jit
from tests.objectives.flows import assert_evidence, assert_gradients, fixed, flow, log_normal
from tests.shared_programs import vae

pytestmark = pytest.mark.usefixtures("quick_double_precision")
SERIES = np.array([0.3, -0.4, 1.0, 0.2])


def test_a_scan_in_model_and_guide() -> None:
    """z_t ~ N(0.9 z_{t-1}, 1), x_t ~ N(z_t, 1), each in one ``scan``, for w_t = exp z_t."""

    def model() -> None:
        def step(z: Array, x: Array) -> tuple[Array, None]:
            w = numpyro.sample("w", dist.LogNormal(0.9 * z, 1.0))
            numpyro.sample("x", dist.Normal(jnp.log(w), 1.0), obs=x)
            return jnp.log(w), None

        scan(step, jnp.array(0.0), SERIES)

    def guide() -> None:
        slope = numpyro.param("slope", 0.5)

        def step(z: Array, x: Array) -> tuple[Array, None]:
            w = numpyro.sample("w", dist.LogNormal(0.4 * z + slope * x, 0.9))
            return jnp.log(w), None

        scan(step, jnp.array(0.0), SERIES)

    steps = np.arange(4.0)
    weights = np.tril(0.9 ** (steps[:, None] - steps))
    evidence = log_normal(SERIES, weights @ weights.T + np.eye(4))
    assert_evidence(NUMPYRO, Case(model, guide), evidence)


@pytest.mark.parametrize("sites", [None, ["theta"]], ids=["all", "theta alone"])
def test_forces_on_and_from_a_scan(sites: Any) -> None:
    """θ ~ N(0, 1), v_t = log w_t ~ N(θ v_{t-1}, 1), x_t ~ N(v_t, 1), from v_0 = 1."""

    def program(is_model: bool) -> Callable[[], None]:
        def run() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))

            def step(v: Array, x: Array) -> tuple[Array, None]:
                v = jnp.log(numpyro.sample("w", dist.LogNormal(theta * v, 1.0)))
                if is_model:
                    numpyro.sample("x", dist.Normal(v, 1.0), obs=x)
                return v, None

            scan(step, jnp.array(1.0), SERIES)

        return run

    def force(u: np.ndarray) -> np.ndarray:
        theta, v = u[0], u[1:]
        before = np.concatenate([[1.0], v[:-1]])
        residual = v - theta * before
        on_v = residual - theta * np.append(residual[1:], 0.0) - (SERIES - v)
        return -np.concatenate([[theta - residual @ before], on_v * (sites is None)])

    case, noise = Case(program(True), program(False)), NumbersOfShape().normal
    elbo = fixed(NUMPYRO, 1, 0.1, tempering="none", sites=sites)
    end = NUMPYRO.draw(elbo.refine(case.model, case.guide), case, NumbersOfShape)
    theta = v = float(noise(()))
    start, v = [theta], 1.0
    for _ in SERIES:
        v = theta * v + float(noise(()))
        start.append(v)
    u = np.array(start)
    rho = np.concatenate([[float(noise(()))], noise((4,)) * (sites is None)])
    u_1 = u + 0.1 * (rho + 0.05 * force(u))
    np.testing.assert_allclose(end["theta"], u_1[0], rtol=1e-10)
    np.testing.assert_allclose(np.log(end["w"]), u_1[1:], rtol=1e-10)


@pytest.mark.slow
def test_random_layers_draw_the_same_at_every_step() -> None:
    """Dropout: its mask is one for the whole flow, so that the gradient is the loss's own."""
    case = vae(NUMPYRO)

    def thinned(x: Array) -> None:
        kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, x.shape)
        decoder = numpyro.param("decoder", jnp.ones((2, 3)))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            loc = kept * (jnp.tanh(z) @ decoder)
            numpyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)

    assert_gradients(NUMPYRO, case._replace(model=thinned), flow(NUMPYRO))


def test_deterministic_sites_are_those_of_the_refined_draws() -> None:
    def model() -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.factor("x", dist.Normal(z, 1.0).log_prob(0.5))

    def guide() -> None:
        numpyro.sample("z", dist.Normal(0.0, 0.9))

    refined = fixed(NUMPYRO).refine(model, guide)
    draws = Predictive(model, guide=refined, num_samples=5)(jax.random.key(0))
    _, guide_key = jax.random.split(jax.random.key(0))
    own = Predictive(refined, num_samples=5)(guide_key)
    np.testing.assert_allclose(draws["twice"], 2 * own["z"])


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

    @jit
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


@pytest.mark.slow
def test_predictive_moments_are_nearer_to_the_posterior() -> None:
    """A correlated posterior under AutoNormal: the refined guide's covariance is nearer."""
    x = np.array([1.0, 2.0, 0.5])

    def model() -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a + b, 0.5).expand([3]).to_event(1), obs=x)

    truth = np.linalg.inv(np.eye(2) + 12 * np.ones((2, 2)))
    # The best diagonal normal, and a step size that is not the initial one.
    mean, scale = truth.sum(0)[0] * 4 * x.sum(), 13**-0.5

    def guide() -> None:
        for name in "ab":
            numpyro.sample(name, dist.Normal(numpyro.param("mean", 0.0), scale))

    elbo = TraceHamiltonian_ELBO(10, 1e-3, tempering="none", path="posterior")
    params = {"mean": mean, "hamiltonian.step_size": 0.2}
    errors = []
    for posterior in (guide, elbo.refine(model, guide)):
        predictive = Predictive(
            model,
            guide=posterior,
            params=params,
            num_samples=4000,
            parallel=True,
            return_sites=["a", "b"],
        )
        draws = predictive(jax.random.key(1))
        covariance = np.cov(np.stack([draws["a"], draws["b"]]))
        errors.append(np.linalg.norm(covariance - truth) / np.linalg.norm(truth))
    assert errors[1] < 0.5 * errors[0]

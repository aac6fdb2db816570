"""TraceHamiltonian_ELBO on the programs people write: bounds and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive, Trace_ELBO
from numpyro.infer.reparam import LocScaleReparam

from numpyro_backend import TraceHamiltonian_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import (
    HIERARCHY,
    X,
    assert_evidence,
    assert_gradients,
    fixed,
    log_normal,
)
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import assert_same_step

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_event_dims_of_the_guides_own() -> None:
    """A vector in the model, two scalars in the guide: each Jacobian counts once."""

    def model() -> None:
        z = numpyro.sample("z", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(jnp.log(z), 1.0).to_event(1), obs=jnp.array([0.5, -1]))

    def guide() -> None:
        numpyro.sample("z", dist.LogNormal(jnp.array([0.3, -0.4]), 0.9))

    exact = log_normal(np.array([0.5, -1]), 2 * np.eye(2))
    assert_evidence(fixed(), Programs(model, guide, ()), exact)


def test_a_support_that_depends_on_another_latent() -> None:
    """b ~ Uniform(0, a): the transform of b moves with a, at every step of the flow."""

    def model() -> None:
        a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
        b = numpyro.sample("b", dist.Uniform(0.0, a))
        numpyro.sample("x", dist.Normal(a + b, 1.0), obs=1.2)

    def guide() -> None:
        a = numpyro.sample("a", dist.LogNormal(numpyro.param("loc", 0.1), 0.9))
        fraction = dist.Kumaraswamy(1.2, 1.2)
        stretch = dist.transforms.AffineTransform(0.0, a, domain=fraction.support)
        numpyro.sample("b", dist.TransformedDistribution(fraction, [stretch]))

    a = np.linspace(0.0, 25.0, 5001)[1:, None]
    fractions = (np.arange(200) + 0.5) / 200
    likelihood = np.exp(-0.5 * (1.2 - a * (1 + fractions)) ** 2) / math.sqrt(2 * math.pi)
    evidence = math.log((a * np.exp(-a) * likelihood).mean(1).sum() * 0.005)
    assert_evidence(fixed(), Programs(model, guide, ()), evidence)


def test_a_scan_in_model_and_guide() -> None:
    """z_t ~ N(0.9 z_{t-1}, 1), x_t ~ N(z_t, 1), each in one ``scan``, for w_t = exp z_t."""
    x = np.array([0.3, -0.4, 1.0, 0.2])

    def model() -> None:
        def step(z: Array, x: Array) -> tuple[Array, None]:
            w = numpyro.sample("w", dist.LogNormal(0.9 * z, 1.0))
            numpyro.sample("x", dist.Normal(jnp.log(w), 1.0), obs=x)
            return jnp.log(w), None

        scan(step, jnp.array(0.0), x)

    def guide() -> None:
        slope = numpyro.param("slope", 0.5)

        def step(z: Array, x: Array) -> tuple[Array, None]:
            w = numpyro.sample("w", dist.LogNormal(0.4 * z + slope * x, 0.9))
            return jnp.log(w), None

        scan(step, jnp.array(0.0), x)

    steps = np.arange(4.0)
    weights = np.tril(0.9 ** (steps[:, None] - steps))
    evidence = log_normal(x, weights @ weights.T + np.eye(4))
    assert_evidence(fixed(), Programs(model, guide, ()), evidence)


def test_latents_in_another_order() -> None:
    def model() -> None:
        with numpyro.plate("data", 3):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            b = numpyro.sample("b", dist.Normal(a, 1.0))
            numpyro.sample("x", dist.Normal(b, 1.0), obs=X)

    def guide() -> None:
        slope = numpyro.param("slope", 0.5)
        with numpyro.plate("data", 3):
            b = numpyro.sample("b", dist.Normal(slope * X, 1.0))
            numpyro.sample("a", dist.Normal(slope * b, 0.8))

    assert_evidence(fixed(), Programs(model, guide, ()), log_normal(X, 3 * np.eye(3)))


def test_factors_deterministic_sites_and_draws_of_the_guides_own() -> None:
    def model() -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.factor("x", dist.Normal(z, 1.0).log_prob(0.5))

    def guide() -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 0.6), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(2 * w, log_density=-math.log(2)))

    case, elbo = Programs(model, guide, ()), fixed()
    assert_evidence(elbo, case, log_normal(np.array([0.5]), 2 * np.eye(1)))
    predictive = Predictive(model, guide=elbo.refine(model, guide), num_samples=5)
    draws = predictive(jax.random.key(0))
    refined = Predictive(elbo.refine(model, guide), num_samples=5)
    _, guide_key = jax.random.split(jax.random.key(0))
    np.testing.assert_allclose(draws["twice"], 2 * refined(guide_key)["z"])


def test_a_partly_observed_site() -> None:
    mask = np.array([True, False, True])

    def model() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(theta, 1.0), obs=X, obs_mask=jnp.array(mask))

    def guide() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.5, 0.7))
        with numpyro.plate("data", 3), handlers.mask(mask=jnp.array(~mask)):
            numpyro.sample("x_unobserved", dist.Normal(theta, 1.1))

    assert_evidence(fixed(), Programs(model, guide, ()), log_normal(X[mask], np.eye(2) + 1))


def test_effect_handlers_around_the_model() -> None:
    """Non-centred by a reparameterisation, observed by conditioning."""

    def unconditioned() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0))

    observed = handlers.condition(unconditioned, data={"x": X})
    model = handlers.reparam(observed, config={"z": LocScaleReparam(0.0)})

    def guide() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.2, 0.7))
        with numpyro.plate("data", 3):
            numpyro.sample("z_decentered", dist.Normal((X - theta) / 2, 0.9))

    assert_evidence(fixed(), Programs(model, guide, ()), HIERARCHY)


def test_a_scale_of_the_users() -> None:
    """Annealing of the KL: at a step of 0 the stock ELBO's loss."""

    def model() -> None:
        with numpyro.plate("data", 10, subsample_size=3):
            with handlers.scale(scale=0.3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=X)

    def guide() -> None:
        loc = numpyro.param("loc", jnp.zeros(3))
        with numpyro.plate("data", 10, subsample_size=3), handlers.scale(scale=0.3):
            numpyro.sample("z", dist.Normal(loc, 0.8))

    still = fixed(step_size=0.0, tempering="none")
    assert_same_step(still, Trace_ELBO(), Programs(model, guide, ()))


def test_a_discrete_latent_that_stays() -> None:
    """y ~ Bernoulli(0.4), z ~ N(y, 1), x ~ N(z, 1)."""

    def program(is_model: bool) -> Callable[[], None]:
        def run() -> None:
            y = numpyro.sample("y", dist.Bernoulli(0.4 if is_model else 0.5))
            loc, scale = (y, 1.0) if is_model else (0.3 + 0.6 * y, 0.8)
            z = numpyro.sample("z", dist.Normal(loc, scale))
            if is_model:
                numpyro.sample("x", dist.Normal(z, 1.0), obs=0.8)

        return run

    evidence = math.log(
        sum(
            weight * math.exp(log_normal(np.array([0.8 - y]), 2 * np.eye(1)))
            for y, weight in ((0, 0.6), (1, 0.4))
        )
    )
    case = Programs(program(True), program(False), ())
    assert_evidence(fixed(sites="z"), case, evidence)


def test_random_layers_draw_the_same_at_every_step() -> None:
    """Dropout: its mask is one for the whole flow, so that the gradient is the loss's own."""
    _, guide, args = programs.vae(num=4)

    def thinned(x: Array) -> None:
        kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, x.shape)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            loc = kept * programs._decode(z, 3)
            numpyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)

    assert_gradients(Programs(thinned, guide, args), TraceHamiltonian_ELBO(3))

"""The three posteriors, with NumPyro."""

from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.elbo import ELBO

from numpyro_backend import SVI
from numpyro_backend.inference_data import to_inference_data
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from schools import EFFECTS, ERRORS
from schools.settings import LEARNING_RATE, Settings

PARTICLES = 8


def model() -> None:
    """Not centred: the latents are independent a priori."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(EFFECTS)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        likelihood = dist.Normal(theta, jnp.array(ERRORS))
        numpyro.sample("effect", likelihood, obs=jnp.array(EFFECTS))


def guide_alone(settings: Settings) -> Any:
    """An independent normal per latent, under the stock ELBO."""
    elbo = Trace_ELBO(num_particles=PARTICLES)
    params, guide = _train(elbo, settings)
    key = jax.random.key(settings.seed)
    return to_inference_data(key, params, model, guide, num_samples=settings.draws, objective=elbo)


def guide_with_flow(settings: Settings) -> Any:
    """The same guide, whose draws are moved by a Hamiltonian flow."""
    elbo = TraceHamiltonian_ELBO(7, 0.2, beta_0=0.8, num_particles=PARTICLES)
    params, guide = _train(elbo, settings)
    key = jax.random.key(settings.seed)
    return to_inference_data(
        key, params, model, guide, num_samples=settings.draws, refine=elbo, objective=elbo
    )


def chain(settings: Settings) -> Any:
    """A chain of NUTS, which is the truth here."""
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.95),
        num_samples=settings.draws,
        num_warmup=settings.warmup,
        progress_bar=not settings.quiet,
    )
    mcmc.run(jax.random.key(settings.seed))
    return arviz.from_numpyro(mcmc)


def _train(elbo: ELBO, settings: Settings) -> tuple[dict[str, Any], AutoNormal]:
    guide = AutoNormal(model, init_scale=0.5)
    optim = numpyro.optim.ClippedAdam(lambda step: LEARNING_RATE * settings.decay**step)
    result = SVI(model, guide, optim, elbo).run(
        jax.random.key(settings.seed),
        settings.steps,
        progress_bar=not settings.quiet,
        stable_update=True,
    )
    return result.params, guide

"""The three posteriors, with Pyro."""

from typing import Any

import arviz
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from tqdm import tqdm

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.inference_data import to_inference_data
from schools import EFFECTS, ERRORS
from schools.settings import LEARNING_RATE, Settings

VECTORIZED = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 1}


def model() -> None:
    """Not centred: the latents are independent a priori."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(EFFECTS)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        likelihood = dist.Normal(theta, torch.tensor(ERRORS))
        pyro.sample("effect", likelihood, obs=torch.tensor(EFFECTS))


def guide_alone(settings: Settings) -> Any:
    """An independent normal per latent, under the stock ELBO."""
    elbo = Trace_ELBO(**VECTORIZED)
    guide = _train(elbo, settings)
    return to_inference_data(model, guide, num_samples=settings.draws, objective=elbo)


def guide_with_flow(settings: Settings) -> Any:
    """The same guide, whose draws are moved by a Hamiltonian flow."""
    elbo = TraceHamiltonian_ELBO(7, 0.2, beta_0=0.8, **VECTORIZED)
    guide = _train(elbo, settings)
    return to_inference_data(model, guide, num_samples=settings.draws, refine=elbo, objective=elbo)


def chain(settings: Settings) -> Any:
    """A chain of NUTS, which is the truth here."""
    pyro.set_rng_seed(settings.seed)
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.95),
        num_samples=settings.draws,
        warmup_steps=settings.warmup,
        disable_progbar=settings.quiet,
    )
    mcmc.run()
    data = arviz.from_pyro(mcmc, dims={"eta": ["schools"], "effect": ["schools"]})
    latents = data.posterior
    latents["theta"] = latents["mu"] + latents["tau"] * latents["eta"]
    # ArviZ takes a deterministic site of Pyro's for an observed one.
    del data.log_likelihood["theta"], data.observed_data["theta"]
    return data


def _train(elbo: ELBO, settings: Settings) -> AutoNormal:
    pyro.set_rng_seed(settings.seed)
    pyro.clear_param_store()
    guide = AutoNormal(model, init_scale=0.5)
    optim = pyro.optim.ClippedAdam({"lr": LEARNING_RATE, "lrd": settings.decay})
    svi = SVI(model, guide, optim, loss=elbo)
    bar = tqdm(range(settings.steps), desc=type(elbo).__name__, disable=settings.quiet)
    for _ in bar:
        bar.set_postfix(loss=f"{svi.step():.2f}")
    return guide

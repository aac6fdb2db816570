"""The three posteriors, with either half."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import arviz
from tqdm import trange

from schools import EFFECTS, ERRORS
from schools.settings import LEARNING_RATE, PARTICLES, Settings


def model_of(half: ModuleType) -> Callable[[], None]:
    """The model, not centred: the latents are independent a priori."""
    ppl, dist = half.ppl, half.dist
    effects, errors = half.array(EFFECTS), half.array(ERRORS)

    def model() -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        with ppl.plate("schools", len(EFFECTS)):
            eta = ppl.sample("eta", dist.Normal(0.0, 1.0))
            theta = half.deterministic("theta", mu + tau * eta)
            ppl.sample("effect", dist.Normal(theta, errors), obs=effects)

    return model


def guide_alone(half: ModuleType, settings: Settings) -> Any:
    """An independent normal per latent, under the stock ELBO."""
    return _trained(half, half.Trace_ELBO(**half.particles(PARTICLES, plates=1)), settings)


def guide_with_flow(half: ModuleType, settings: Settings) -> Any:
    """The same guide, whose draws are moved by a Hamiltonian flow."""
    particles = half.particles(PARTICLES, plates=1)
    elbo = half.TraceHamiltonian_ELBO(**particles)
    return _trained(half, elbo, settings)


def chain(half: ModuleType, settings: Settings) -> Any:
    """A chain of NUTS, which is the truth here."""
    options = {"seed": settings.seed, "quiet": settings.quiet}
    model, count = model_of(half), settings.draws
    mcmc = half.chain(model, count, warmup=settings.warmup, accept=0.95, **options)
    if half.ppl.__name__ == "numpyro":
        return arviz.from_numpyro(mcmc)
    data = arviz.from_pyro(mcmc, dims={"eta": ["schools"], "effect": ["schools"]})
    latents = data.posterior
    latents["theta"] = latents["mu"] + latents["tau"] * latents["eta"]
    # ArviZ takes a deterministic site of Pyro's for an observed one.
    del data.log_likelihood["theta"], data.observed_data["theta"]
    return data


def _trained(half: ModuleType, elbo: Any, settings: Settings) -> Any:
    model = model_of(half)
    guide = half.AutoNormal(model, init_scale=0.5)
    optimiser = half.clipped_adam(LEARNING_RATE, settings.decay)
    fitting = half.Fitting(model, guide, elbo, optimiser, seed=settings.seed)
    bar = trange(settings.steps, desc=type(elbo).__name__, disable=settings.quiet)
    for _ in bar:
        bar.set_postfix(loss=f"{float(fitting.step()):.2f}")
    return fitting.ask(
        half.to_inference_data, num_samples=settings.draws, refine=fitting.flow, objective=elbo
    )

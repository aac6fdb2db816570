"""Fits to the two posteriors, with either backend, and NumPyro's AutoDAIS among them."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rival_objectives import posteriors
from rival_objectives.posteriors import INIT_SCALE, SITES, Fit, Plan
from rival_objectives.steps import take_steps

Model = Callable[[], None]


def logistic(half: Any) -> Model:
    """A standard normal prior on every weight."""
    features, labels = map(half.array, posteriors.regression())

    def model() -> None:
        prior = half.dist.Normal(half.xp.zeros_like(features[0]), 1.0).to_event(1)
        weights = half.ppl.sample("weights", prior)
        likelihood = half.dist.Bernoulli(logits=weights @ features.T).to_event(1)
        half.ppl.sample("labels", likelihood, obs=labels)

    return model


def funnel(half: Any) -> Model:
    """Neal's."""
    zero, zeros = half.array(0.0), half.array(np.zeros(posteriors.FUNNEL_DIMS))

    def model() -> None:
        v = half.ppl.sample("v", half.dist.Normal(zero, posteriors.FUNNEL_SD))
        scale = half.xp.exp(v / 2)[..., None]
        half.ppl.sample("x", half.dist.Normal(zeros, scale).to_event(1))

    return model


MODELS = {"logistic": logistic, "funnel": funnel}


def fit(problem: str, method: str, num_steps: int, seed: int, plan: Plan, *, backend: str) -> Fit:
    """Train a guide, and draw from it.

    Args:
        problem: A name of `MODELS`.
        method: `AutoNormal`, `TraceHamiltonian_ELBO` or `AutoDAIS`, which is NumPyro's.
        num_steps: Leapfrog steps of a flow; without one, the draws of a step are as many times
            more as a flow of so many steps costs gradients.
        seed: Of all randomness.
        plan: How long.
        backend: `pyro` or `numpyro`.
    """
    dais = method == "AutoDAIS"
    half = importlib.import_module(f"halves.with_{'numpyro' if dais else backend}")
    with half.computing():
        model = MODELS[problem](half)
        particles = plan.particles * (num_steps + 1 if method == "AutoNormal" else 1)
        vectorized = half.particles(particles, plates=0)
        objective = half.Trace_ELBO(**vectorized)
        if method == "TraceHamiltonian_ELBO":
            objective = half.TraceHamiltonian_ELBO(
                num_steps,
                {
                    site: half.array(np.full((num_steps, *shape), posteriors.STEP_SIZE))
                    for site, shape in SITES[problem].items()
                },
                per_step=True,
                max_step_size=posteriors.MAX_STEP_SIZE,
                tempering="free",
                **vectorized,
                path="posterior",
            )
        zeros = {site: half.array(np.zeros(shape)) for site, shape in SITES[problem].items()}
        start = {"init_loc_fn": half.init_to_value(values=zeros), "init_scale": INIT_SCALE}
        optimiser = half.clipped_adam(plan.learning_rate, plan.decay)
        if dais:
            rival = importlib.import_module("rival_objectives.auto_dais")
            guide = rival.guide(model, num_steps, **start)
            fitting = rival.Fitting(model, guide, objective, optimiser, seed=seed)
        else:
            guide = half.AutoNormal(model, **start)
            fitting = half.Fitting(model, guide, objective, optimiser, seed=seed)
        seconds = take_steps(lambda _: fitting.step(), range(plan.steps))
        return Fit(
            fitting.log_weights(plan.draws),
            side_by_side(problem, fitting.draws(plan.draws)),
            seconds,
        )


def chain(problem: str, seed: int, plan: Plan, *, backend: str) -> np.ndarray:
    """Draws of NUTS."""
    half = importlib.import_module(f"halves.with_{backend}")
    with half.computing():
        model, warmup = MODELS[problem](half), plan.chain // 2
        sampled = half.chain(model, plan.chain, warmup=warmup, accept=0.8, seed=seed)
    return side_by_side(problem, sampled.get_samples())


def side_by_side(problem: str, draws: dict[str, np.ndarray]) -> np.ndarray:
    """All latents in one array, of shape (draws, latents)."""
    sites = [np.asarray(draws[site]) for site in SITES[problem]]
    return np.concatenate([site.reshape(len(site), -1) for site in sites], axis=1)

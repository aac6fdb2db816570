"""Fits to the two posteriors with NumPyro, the rival AutoDAIS included."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous, AutoDAIS, AutoNormal
from numpyro.infer.elbo import ELBO
from numpyro.infer.initialization import init_to_value

from numpyro_backend import SVI, TraceHamiltonian_ELBO
from rival_objectives.posteriors import (
    FUNNEL_DIMS,
    FUNNEL_SD,
    INIT_SCALE,
    MAX_STEP_SIZE,
    SITES,
    STEP_SIZE,
    Fit,
    Plan,
    regression,
)
from rival_objectives.steps import take_steps


def logistic() -> None:
    """A standard normal prior on every weight."""
    features, labels = map(jnp.asarray, regression())
    prior = dist.Normal(jnp.zeros(features.shape[1]), 1.0).to_event(1)
    weights = numpyro.sample("weights", prior)
    numpyro.sample("labels", dist.Bernoulli(logits=features @ weights).to_event(1), obs=labels)


def funnel() -> None:
    """Neal's."""
    v = numpyro.sample("v", dist.Normal(0.0, FUNNEL_SD))
    numpyro.sample("x", dist.Normal(jnp.zeros(FUNNEL_DIMS), jnp.exp(v / 2)).to_event(1))


MODELS = {"logistic": logistic, "funnel": funnel}


def fits(problem: str, method: str, num_steps: int, seeds: range, plan: Plan) -> Iterator[Fit]:
    """Train a guide from every seed, and draw from it.

    Args:
        problem: A name of `MODELS`.
        method: `AutoNormal`, `TraceHamiltonian_ELBO` or `AutoDAIS`.
        num_steps: Leapfrog steps of a flow; without one, the draws of a step are as many times
            more as a flow of so many steps costs gradients.
        seeds: Of all randomness.
        plan: How long.
    """
    model = MODELS[problem]
    guide = _guide(model, problem, method, num_steps)
    particles = plan.particles * (num_steps + 1 if method == "AutoNormal" else 1)
    optim = numpyro.optim.ClippedAdam(lambda step: plan.learning_rate * plan.decay**step)
    svi = SVI(model, guide, optim, _objective(problem, method, num_steps, particles))
    lone = _objective(problem, method, num_steps, 1)
    refined = lone.refine(model, guide) if method == "TraceHamiltonian_ELBO" else guide

    def log_weight(key: Array, params: dict[str, Array]) -> Array:
        return -lone.loss(key, params, svi.model, svi.guide)

    def draw(key: Array, params: dict[str, Array]) -> dict[str, Array]:
        if method == "AutoDAIS":
            return guide.sample_posterior(key, params)
        return handlers.seed(handlers.substitute(refined, data=params), key)()

    update = jax.jit(svi.stable_update)
    log_weights, draws = (jax.jit(jax.vmap(f, in_axes=(0, None))) for f in (log_weight, draw))
    for seed in seeds:
        train_key, weight_key, draw_key = jax.random.split(jax.random.key(seed), 3)
        state = svi.init(train_key)

        def step(_: int) -> Array:
            nonlocal state
            state, loss = update(state)
            return loss

        seconds = take_steps(step, range(plan.steps))
        params = svi.get_params(state)
        yield Fit(
            np.asarray(log_weights(jax.random.split(weight_key, plan.draws), params)),
            _side_by_side(problem, draws(jax.random.split(draw_key, plan.draws), params)),
            seconds,
        )


def chain(problem: str, seed: int, plan: Plan) -> np.ndarray:
    """Draws of NUTS."""
    mcmc = MCMC(
        NUTS(MODELS[problem]),
        num_warmup=plan.chain // 2,
        num_samples=plan.chain,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed))
    return _side_by_side(problem, mcmc.get_samples())


def _guide(model: Any, problem: str, method: str, num_steps: int) -> AutoContinuous | AutoNormal:
    zeros = {site: jnp.zeros(shape) for site, shape in SITES[problem].items()}
    settings = {"init_loc_fn": init_to_value(values=zeros), "init_scale": INIT_SCALE}
    if method != "AutoDAIS":
        return AutoNormal(model, **settings)
    return AutoDAIS(model, K=num_steps, eta_init=STEP_SIZE, eta_max=MAX_STEP_SIZE, **settings)


def _objective(problem: str, method: str, num_steps: int, num_particles: int) -> ELBO:
    if method != "TraceHamiltonian_ELBO":
        return Trace_ELBO(num_particles)
    return TraceHamiltonian_ELBO(
        num_steps,
        {site: jnp.full((num_steps, *shape), STEP_SIZE) for site, shape in SITES[problem].items()},
        per_step=True,
        max_step_size=MAX_STEP_SIZE,
        tempering="free",
        num_particles=num_particles,
    )


def _side_by_side(problem: str, draws: dict[str, Array]) -> np.ndarray:
    sites = [np.asarray(draws[site]) for site in SITES[problem]]
    return np.concatenate([site.reshape(len(site), -1) for site in sites], axis=1)

"""Fits to the two posteriors with Pyro."""

import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, MCMC, NUTS, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.diagnostics import log_evidence
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


def logistic(features: Tensor, labels: Tensor) -> None:
    """A standard normal prior on every weight."""
    prior = dist.Normal(features.new_zeros(features.shape[1]), 1.0).to_event(1)
    weights = pyro.sample("weights", prior)
    pyro.sample("labels", dist.Bernoulli(logits=weights @ features.T).to_event(1), obs=labels)


def funnel() -> None:
    """Neal's."""
    v = pyro.sample("v", dist.Normal(torch.tensor(0.0), FUNNEL_SD))
    scale = (v / 2).exp().unsqueeze(-1)
    pyro.sample("x", dist.Normal(torch.zeros(FUNNEL_DIMS), scale).to_event(1))


MODELS = {"logistic": logistic, "funnel": funnel}


def data(problem: str) -> tuple[Tensor, ...]:
    """What the model of a problem is called with."""
    return tuple(map(torch.tensor, regression())) if problem == "logistic" else ()


def fits(problem: str, method: str, num_steps: int, seeds: range, plan: Plan) -> Iterator[Fit]:
    """Train a guide from every seed, and draw from it.

    Args:
        problem: A name of `MODELS`.
        method: `AutoNormal` or `TraceHamiltonian_ELBO`.
        num_steps: Leapfrog steps of a flow; without one, the draws of a step are as many times
            more as a flow of so many steps costs gradients.
        seeds: Of all randomness.
        plan: How long.
    """
    for seed in seeds:
        yield _fit(problem, method, num_steps, seed, plan)


def chain(problem: str, seed: int, plan: Plan) -> np.ndarray:
    """Draws of NUTS."""
    pyro.set_rng_seed(seed)
    model = partial(MODELS[problem], *data(problem))
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=plan.chain, warmup_steps=plan.chain // 2, disable_progbar=True)
    mcmc.run()
    return _side_by_side(problem, mcmc.get_samples())


def _fit(problem: str, method: str, num_steps: int, seed: int, plan: Plan) -> Fit:
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    model, arguments = MODELS[problem], data(problem)
    zeros = {site: torch.zeros(shape) for site, shape in SITES[problem].items()}
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=zeros), init_scale=INIT_SCALE)
    flows = method == "TraceHamiltonian_ELBO"
    vectorized = {
        "num_particles": plan.particles * (1 if flows else num_steps + 1),
        "vectorize_particles": True,
        "max_plate_nesting": 0,
    }
    elbo: ELBO = Trace_ELBO(**vectorized)
    if flows:
        sizes = {
            s: torch.full((num_steps, *shape), STEP_SIZE) for s, shape in SITES[problem].items()
        }
        elbo = TraceHamiltonian_ELBO(
            num_steps,
            sizes,
            per_step=True,
            max_step_size=MAX_STEP_SIZE,
            tempering="free",
            **vectorized,
        )
    optim = pyro.optim.ClippedAdam({"lr": plan.learning_rate, "lrd": plan.decay})
    svi = CompiledSVI(model, guide, optim, loss=elbo)
    seconds = take_steps(lambda _: svi.step(*arguments), range(plan.steps))
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=UserWarning):
        # That weights are unreliable is said by the table.
        evidence = log_evidence(
            model, guide, *arguments, num_samples=plan.draws, elbo=elbo if flows else None
        )
        refined = elbo.refine(model, guide) if flows else guide
        with pyro.plate("draws", plan.draws, dim=-1):
            draws = refined(*arguments)
    return Fit(evidence.log_weights.numpy(), _side_by_side(problem, draws), seconds)


def _side_by_side(problem: str, draws: dict[str, Tensor]) -> np.ndarray:
    sites = [draws[site].detach().numpy() for site in SITES[problem]]
    return np.concatenate([site.reshape(len(site), -1) for site in sites], axis=1)

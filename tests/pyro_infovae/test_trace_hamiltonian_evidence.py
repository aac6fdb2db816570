"""TraceHamiltonian_ELBO: importance weights that average to the evidence, by many draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_feasible
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import normal_hierarchy, warm
from tests.pyro_infovae.programs import Programs


def log_weights(
    objective: TraceHamiltonian_ELBO, case: Programs, *, draws: int, seed: int = 0
) -> Tensor:
    """Log importance weights of draws in one vectorised run, each of the whole model."""
    pyro.set_rng_seed(seed)
    guide = objective.refine(case.model, case.guide)
    with torch.no_grad(), pyro.validation_enabled(False):
        plate = pyro.plate("draws", draws, dim=-4)
        guide_trace = poutine.trace(plate(guide)).get_trace(*case.args)
        replayed = poutine.replay(plate(case.model), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*case.args)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        return _per_draw(model_trace, draws) - _per_draw(guide_trace, draws)


def _per_draw(trace: poutine.Trace, draws: int) -> Tensor:
    total = torch.zeros(draws)
    for site in trace.nodes.values():
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
            log_prob = site["log_prob"]
            shape = (1,) * (4 - log_prob.dim()) + log_prob.shape
            total = total + log_prob.reshape(shape).expand(draws, *shape[1:]).sum((1, 2, 3))
    return total


def assert_evidence(weights: Tensor, exact: float) -> None:
    """E[w] is the evidence within 4 standard errors, and the ELBO is below it."""
    ratio = (weights - exact).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert error < 0.2, "too few draws to tell"
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert float(weights.mean()) < exact + 4 * float(weights.std()) / math.sqrt(len(weights))


class LinearGaussian(NamedTuple):
    programs: Programs
    evidence: float


def linear_gaussian(seed: int) -> LinearGaussian:
    """z ~ N(0, I), x | z ~ N(A z + b, noise), and a bad diagonal guide."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dim, out = 1 + seed % 4, 2 + seed % 3
    weight, shift = randn(out, dim), randn(out)
    noise = float(0.5 + torch.rand((), generator=generator))
    x = weight @ randn(dim) + shift + noise * randn(out)
    covariance = weight @ weight.T + noise**2 * torch.eye(out, dtype=torch.float64)
    evidence = dist.MultivariateNormal(shift, covariance).log_prob(x).item()
    precision = torch.eye(dim, dtype=torch.float64) + weight.T @ weight / noise**2
    mean = torch.linalg.solve(precision, weight.T @ (x - shift) / noise**2)
    loc = mean + 0.4 * randn(dim)
    scale = precision.inverse().diagonal().sqrt() * (0.9 + 0.6 * randn(dim).sigmoid())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight.T + shift, noise).to_event(1), obs=x)

    def guide() -> None:
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return LinearGaussian(Programs(model, guide, ()), evidence)


TEMPERINGS = ["quadratic", "free", "none", "constant", warm]

STEPS = [1, 3, 10]

BETAS = [0.3, 0.7, 1.0]


def settings(seed: int) -> dict[str, Any]:
    num_steps, beta_0 = STEPS[seed % 3], BETAS[(seed // 3) % 3]
    dim = 1 + seed % 4
    step_size: float | Tensor = 0.15
    per_step = seed % 4 == 2
    if per_step:
        step_size = torch.linspace(0.05, 0.2, num_steps)
    elif seed % 4 == 1:
        step_size = torch.linspace(0.08, 0.2, dim)
    return {
        "num_steps": num_steps,
        "step_size": step_size,
        "beta_0": beta_0,
        "tempering": TEMPERINGS[seed % 5],
        "per_step": per_step,
        "learn": False,
    }


@pytest.mark.parametrize("seed", range(30))
def test_linear_gaussian(seed: int) -> None:
    case = linear_gaussian(seed)
    objective = TraceHamiltonian_ELBO(**settings(seed))
    assert_evidence(log_weights(objective, case.programs, draws=40_000), case.evidence)


def test_gamma_poisson() -> None:
    """Constrained support: rate ~ Gamma(3, 2), counts ~ Poisson(rate)."""
    counts = torch.tensor([2.0, 4.0, 1.0])

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0), torch.tensor(2.0)))
        pyro.sample(
            "x", dist.Poisson(rate.unsqueeze(-1).expand(*rate.shape, 3)).to_event(1), obs=counts
        )

    def guide() -> None:
        pyro.sample("rate", dist.LogNormal(torch.tensor(0.3), torch.tensor(0.6)))

    total, num = float(counts.sum()), len(counts)
    evidence = (
        3 * math.log(2)
        - math.lgamma(3)
        + math.lgamma(3 + total)
        - (3 + total) * math.log(2 + num)
        - sum(math.lgamma(float(c) + 1) for c in counts)
    )
    for tempering in ("quadratic", "free", warm):
        objective = TraceHamiltonian_ELBO(4, 0.15, tempering=tempering, learn=False)
        weights = log_weights(objective, Programs(model, guide, ()), draws=40_000)
        assert_evidence(weights, evidence)


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_hierarchy_with_an_automatic_guide(auto: Callable[..., Any]) -> None:
    model, evidence = normal_hierarchy()
    # Wider than the posterior, so that the weights have a variance.
    guide = auto(model, init_scale=0.9, init_loc_fn=init_to_feasible)
    guide()
    objective = TraceHamiltonian_ELBO(3, 0.2, beta_0=0.6, learn=False)
    weights = log_weights(objective, Programs(model, guide, ()), draws=40_000)
    assert_evidence(weights, evidence.item())


def test_simplex_support() -> None:
    """Unconstrained and constrained values differ in shape: a Dirichlet-multinomial."""
    counts = torch.tensor([3.0, 1.0, 2.0])

    def model() -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 1.0, 1.5])))
        pyro.sample("x", dist.Multinomial(6, p), obs=counts)

    def guide() -> None:
        pyro.sample("p", dist.Dirichlet(torch.tensor([3.0, 2.0, 3.0])))

    evidence = dist.DirichletMultinomial(torch.tensor([2.0, 1.0, 1.5]), 6).log_prob(counts)
    objective = TraceHamiltonian_ELBO(3, 0.1, learn=False)
    weights = log_weights(objective, Programs(model, guide, ()), draws=40_000)
    assert_evidence(weights, evidence.item())


def test_some_latents_stay() -> None:
    case = programs.hierarchical(num=3)
    x = case.args[0]
    covariance = (torch.ones(3, 3) + torch.eye(3)).repeat_interleave(3, 0).repeat_interleave(3, 1)
    covariance = covariance + torch.eye(9)
    evidence = dist.MultivariateNormal(torch.zeros(9), covariance).log_prob(x.reshape(-1)).item()
    guide = AutoNormal(case.model, init_scale=0.5)
    guide(x)
    for sites in (["z"], ["theta"], None):
        objective = TraceHamiltonian_ELBO(3, 0.15, sites=sites, learn=False)
        weights = log_weights(objective, Programs(case.model, guide, (x,)), draws=60_000)
        assert_evidence(weights, evidence)

"""TraceHamiltonian_ELBO: a bound that is a bound, checked against exact evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.test_trace_mmd_elbo import PARTICLES, seeded


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


def warm(beta_0: Tensor, k: int, num_steps: int) -> Tensor:
    """A schedule of the user's that does not end at 1."""
    return beta_0 + (0.9 - beta_0) * k / num_steps


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


class TestEvidence:
    @pytest.mark.parametrize("seed", range(30))
    def test_linear_gaussian(self, seed: int) -> None:
        case = linear_gaussian(seed)
        objective = TraceHamiltonian_ELBO(**settings(seed))
        assert_evidence(log_weights(objective, case.programs, draws=40_000), case.evidence)

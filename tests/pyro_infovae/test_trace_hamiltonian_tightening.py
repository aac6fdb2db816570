"""How much nearer to the posterior the flow brings a guide."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroParam
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO


class _Correlated(pyro.nn.PyroModule):
    def forward(self) -> None:
        covariance = torch.tensor([[1.0, 0.27], [0.27, 0.09]])
        tril = torch.linalg.cholesky(covariance)
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))


class _Diagonal(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(2))
        self.scale = PyroParam(torch.tensor([0.44, 0.12]), constraints.positive)

    def forward(self) -> None:
        pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))


def _minimise(module: torch.nn.Module) -> None:
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = module()
        loss.backward()
        return loss

    optimiser.step(closure)


def test_more_steps_close_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal with correlation 0.9 under a diagonal guide, whose own gap is 0.83 nats.

    The log weight is quadratic in the four standard normals of a draw, so that eight points
    with their second moments give its expectation exactly: no noise hides a gap.
    """
    points = 2 * torch.cat([torch.eye(4), -torch.eye(4)])
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal", lambda *_, **__: points[:, :2]
    )
    monkeypatch.setattr(
        "pyro_infovae._traces.refined_guide.torch.randn_like", lambda _: points[:, 2:]
    )
    particles = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 0}
    plain = -0.5 * math.log(1 - 0.9**2)
    gaps = [plain]
    with pyro.settings.context(module_local_params=True):
        model, guide = _Correlated(), _Diagonal()
        stock = Trace_ELBO(**particles)(model, guide)
        _minimise(stock)
        assert stock().item() == pytest.approx(plain, rel=1e-6)
        steps, factors = torch.empty(0, 2), torch.empty(0)
        for num_steps in (1, 3, 5, 10):
            more = num_steps - len(steps)
            objective = TraceHamiltonian_ELBO(
                num_steps,
                torch.cat([steps, torch.full((more, 2), 0.3)]),
                per_step=True,
                tempering="free",
                max_step_size=2.0,
                **particles,
            )
            start = torch.cat([factors, torch.full((more,), 0.99)])
            objective.flow.tempering_factors = PyroParam(start, constraints.unit_interval)
            module = objective(model, guide)
            _minimise(module)
            gaps.append(module().item())
            steps = objective.flow.step_size.detach()
            factors = objective.flow.tempering_factors.detach()
    assert all(after < before for before, after in itertools.pairwise(gaps))
    assert gaps[-1] < 0.05 * plain
    assert gaps[-1] > -1e-9, "a gap below 0 would be no bound"


def test_predictive_moments_are_nearer_to_the_posterior() -> None:
    """A correlated posterior under AutoNormal: the refined guide's covariance is nearer."""
    x = torch.tensor([1.0, 2.0, 0.5])

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        loc = (a + b).unsqueeze(-1) * torch.ones(3)
        pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    precision = torch.eye(2) + 12 * torch.ones(2, 2)
    truth = precision.inverse()
    guide = AutoNormal(model)
    objective = TraceHamiltonian_ELBO(
        8, 0.1, num_particles=32, vectorize_particles=True, max_plate_nesting=0
    )
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), loss=objective)
    for _ in range(150):
        svi.step()
    errors = []
    for posterior in (guide, objective.refine(model, guide)):
        for parallel in (False, True):
            num = 4000 if parallel else 300
            draws = Predictive(model, guide=posterior, num_samples=num, parallel=parallel)()
            sample = torch.stack([draws["a"].reshape(-1), draws["b"].reshape(-1)])
            assert sample.shape == (2, num)
        errors.append(float((sample.cov() - truth).norm() / truth.norm()))
    assert errors[1] < 0.5 * errors[0]

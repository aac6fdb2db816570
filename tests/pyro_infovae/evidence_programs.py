"""A linear-Gaussian program whose evidence is known, and how close an estimate must come."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_infovae._diagnostics.evidence import Evidence, log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

WEIGHT = torch.tensor([[1.0, 0.8], [-0.5, 1.2], [0.9, 0.7]], dtype=torch.float64)
NOISE = 0.4


def linear_gaussian(
    *,
    num: int = 8,
    total: int | None = None,
    batch: int | None = None,
    mask: Tensor | None = None,
    guide_scale: float = 1.3,
) -> tuple[Programs, Tensor]:
    """x_i ~ N(W z_i, 0.4²), z_i ~ N(0, I): programs, and log p(x_i) of every row.

    The posterior is correlated, and the guide has its mean and, enlarged, its marginal scales.
    """
    x = programs.data(num)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    posterior = (torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2).inverse()
    kept = torch.ones(batch or num, dtype=torch.bool) if mask is None else mask

    def plate() -> Any:
        rows = torch.arange(batch) if batch else None
        return pyro.plate("data", total or num, subsample=rows)

    def model(x: Tensor) -> None:
        with plate() as index, poutine.mask(mask=kept):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        with plate() as index, poutine.mask(mask=kept):
            loc = x[index] @ WEIGHT @ posterior / NOISE**2
            scale = guide_scale * posterior.diagonal().sqrt()
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,)), exact


def run(case: Programs, **settings: Any) -> Evidence:
    settings = {"num_samples": 4000, **settings}
    return log_evidence(case.model, case.guide, *case.args, **settings)


def assert_exact(result: Evidence, exact: Tensor, *, largest_error: float = 0.1) -> None:
    assert result.log_evidence.shape == exact.shape
    assert (result.standard_error < largest_error).all(), "too few draws to tell"
    deviation = (result.log_evidence - exact).abs() / result.standard_error
    assert (deviation < 4).all(), deviation


FLOW = {"num_steps": 5, "step_size": 0.15, "beta_0": 0.7, "learn": False}

"""Training with TraceInfoMax_ELBO."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording
from tests.pyro_infovae.steps import CASES
from tests.pyro_infovae.training import assert_resumes

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


class Quadratic(nn.Module):
    """The log density ratio of two jointly normal numbers, up to its coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.polynomial(x, z[:, 0])

    def all_pairs(self, x: Tensor, z: Tensor) -> Tensor:
        return self.polynomial(x[:, None], z[:, 0])

    def polynomial(self, x: Tensor, z: Tensor) -> Tensor:
        a, b, c, d = self.coefficients
        return a + b * x * x + c * x * z + d * z * z


def linear_gaussian(x: Tensor, batch: int) -> Programs:
    """z ~ N(0, 1), x | z ~ N(z / 2, 1), and the guide N(a x, s²) with a and s to learn."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0.5 * z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            pyro.sample("z", dist.Normal(slope * x[index], scale))

    return Programs(model, guide, (x,))


def information(slope: Any, scale: Any) -> Any:
    return 0.5 * torch.log1p((slope / scale) ** 2)


def best_information(alpha: float) -> float:
    """I at the minimum of the objective itself, whose terms are all known, by a grid search."""
    slope, scale = torch.meshgrid(
        torch.linspace(0.0, 2.0, 801), torch.linspace(0.02, 1.2, 801), indexing="ij"
    )
    reconstruction = 0.5 * ((1 - 0.5 * slope) ** 2 + 0.25 * scale**2)
    kl = 0.5 * (scale**2 + slope**2 - 1) - scale.log()
    loss = reconstruction + kl - alpha * information(slope, scale)
    best = loss.argmin()
    return float(information(slope, scale).flatten()[best])


def test_alpha_raises_the_true_information_to_where_the_objective_is_best() -> None:
    """Standard normal data, so that I = ½ log(1 + a²/s²)."""
    x = programs.data(4000, 1)[:, 0]
    x = (x - x.mean()) / x.std()
    reached = []
    for alpha in (0.0, 0.3, 0.5):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        case = linear_gaussian(x, batch=200)
        objective = TraceInfoMax_ELBO(Quadratic(), alpha, negatives="all")
        optim = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 4e-2}, "gamma": 0.99}
        )
        svi = SVI(case.model, case.guide, optim, loss=objective)
        for _ in range(300):
            svi.step(*case.args)
            optim.step()
        slope, scale = (pyro.param(name).detach() for name in ("slope", "scale"))
        reached.append(float(information(slope, scale)))
        assert reached[-1] == pytest.approx(best_information(alpha), rel=0.05)
    assert reached[0] < reached[1] < reached[2]


def test_save_load_and_resume_with_a_fresh_critic(tmp_path: Path) -> None:
    assert_resumes(
        programs.vae(num=80, batch=64),
        lambda: TraceInfoMax_ELBO(ConcatCritic(3, 2, hidden=(8,))),
        tmp_path,
    )


def test_evaluate_loss_leaves_no_gradient() -> None:
    model, guide, args = CASES["plain"]
    objective = TraceInfoMax_ELBO(Recording())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    assert math.isfinite(svi.evaluate_loss(*args))
    assert all(parameter.grad is None for parameter in objective.critic.parameters())

"""TraceMMD_ELBO under the guides that people write, and automatic ones."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import averages_to, penalty


def test_a_point_mass_guide_without_kl() -> None:
    """The deterministic encoder of a WAE: α=1 removes the KL."""
    model, _, (x,) = programs.vae(num=60)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x @ pyro.param("encoder", torch.full((3, 2), 2.0))
            pyro.sample("z", dist.Delta(z, event_dim=1))

    objective = TraceMMD_ELBO(1.0, 1000.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), loss=objective)
    for _ in range(150):
        svi.step(x)
    codes = x @ pyro.param("encoder").detach()
    assert codes.var(0).mean() == pytest.approx(1.0, abs=0.45), "towards the prior's variance"


def test_auto_normal() -> None:
    model, _, args = programs.vae()
    guide = AutoNormal(model)
    guide(*args)
    closed = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
    sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=8, num_particles=8, vectorize_particles=True)
    case = Programs(model, guide, args)
    exact = penalty(closed, case, seed=0)
    assert averages_to([penalty(sampled, case, seed=i) for i in range(100)], exact)


@pytest.mark.parametrize("sites", [None, ["z"]])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_auto_normal_kl_is_reweighted_whole(alpha: float, sites: list[str] | None) -> None:
    model, _, args = programs.vae()
    guide = AutoNormal(model)
    guide(*args)
    case = Programs(model, guide, args)
    kls = []
    for weight in (0.0, alpha):
        pyro.set_rng_seed(0)
        objective = TraceMMD_ELBO(weight, 1 - weight + 1e-12, sites=sites)
        kls.append(objective.loss(model, guide, *case.args))
    pyro.set_rng_seed(0)
    draw = pyro.poutine.trace(guide).get_trace(*args)
    z = draw.nodes["z"]["value"]
    q = draw.nodes["z_unconstrained"]["fn"].log_prob(z)
    kl = (q - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).sum()
    assert kls[0] - kls[1] == pytest.approx(alpha * kl.item(), rel=1e-6)


def test_auto_delta() -> None:
    model, _, args = programs.vae()
    guide = AutoDelta(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceMMD_ELBO(1.0, 10.0))
    assert all(math.isfinite(svi.step(*args)) for _ in range(3))


def test_a_denoising_model() -> None:
    def model(x_in: Tensor, x_out: Tensor) -> None:
        with pyro.plate("data", len(x_out)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_out)

    def guide(x_in: Tensor, x_out: Tensor) -> None:
        with pyro.plate("data", len(x_in)):
            weight = pyro.param("weight", torch.tensor(0.1))
            pyro.sample("z", dist.Normal(weight * x_in, 0.5).to_event(1))

    x = programs.data(40)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceMMD_ELBO(0.0, 10.0))
    losses = [svi.step(x + 0.3 * torch.randn_like(x), x_out=x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])

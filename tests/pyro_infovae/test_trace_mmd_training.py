"""Training with TraceMMD_ELBO."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import penalty
from tests.pyro_infovae.training import assert_resumes, losses_of_module


class _VAE(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 3)
        self.noise = PyroSample(dist.LogNormal(0.0, 0.1))

    def forward(self, x: Tensor) -> None:
        noise = self.noise
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)


class _Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def test_as_a_module_with_a_torch_optimiser() -> None:
    x = programs.data(64)
    with pyro.settings.context(module_local_params=True):
        module = TraceMMD_ELBO(lambd=10.0)(_VAE(), _Encoder())
        losses = losses_of_module(module, x, steps=60)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert len(list(module.parameters())) == 4


def test_save_load_and_resume(tmp_path: Path) -> None:
    assert_resumes(programs.vae(num=20, batch=7), TraceMMD_ELBO, tmp_path)


def test_the_penalty_moves_the_aggregated_posterior_to_the_prior() -> None:
    x = 4 + programs.data(200)

    def train(objective: TraceMMD_ELBO) -> float:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, _ = programs.vae(num=200)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), loss=objective)
        for _ in range(200):
            svi.step(x)
        measure = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        return penalty(measure, Programs(model, guide, (x,)), seed=0)

    with pytest.warns(UserWarning, match="weight"):
        stock = TraceMMD_ELBO(0.0, 1.0)
    assert train(TraceMMD_ELBO(0.0, 1000.0)) < 0.5 * train(stock)


def test_nan_in_the_loss_warns() -> None:
    model, guide, (x,) = programs.vae()
    pyro.enable_validation(False)
    x = x.clone()
    x[0] = math.nan
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=TraceMMD_ELBO())
    with pytest.warns(UserWarning, match="Encountered NaN: loss"):
        svi.step(x)
    with pytest.warns(UserWarning, match="Encountered NaN"):
        svi.evaluate_loss(x)

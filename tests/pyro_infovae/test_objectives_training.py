"""Training with the objectives: as modules, resumed from a saved param store, past a nan."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.half import PYRO
from tests.pyro_infovae.training import assert_resumes, losses_of_module
from tests.shared_programs import critic

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


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


RESUMED: dict[str, Callable[[], Any]] = {
    "mmd": TraceMMD_ELBO,
    "infomax": lambda: TraceInfoMax_ELBO(ConcatCritic(3, 2, hidden=(8,))),
    "hamiltonian": lambda: TraceHamiltonian_ELBO(
        3, 0.1, per_step=True, tempering="free", max_step_size=0.7, path="posterior"
    ),
}


@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
def test_save_load_and_resume(make: Callable[[], Any], tmp_path: Path) -> None:
    assert_resumes(programs.vae(num=20, batch=7), make, tmp_path)


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


def test_evaluate_loss_leaves_no_gradient() -> None:
    model, guide, args = programs.vae()
    objective = TraceInfoMax_ELBO(critic(PYRO))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    assert math.isfinite(svi.evaluate_loss(*args))
    assert all(parameter.grad is None for parameter in objective.critic.parameters())


def test_a_flow_is_trained_and_evaluated() -> None:
    model, guide, args = programs.vae(num=40, batch=10)
    objective = TraceHamiltonian_ELBO(3, 0.1, per_step=True, tempering="free", path="posterior")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    before = svi.evaluate_loss(*args)
    names = set(pyro.get_param_store().keys())
    assert {"hamiltonian.step_size", "hamiltonian.tempering_factors"} < names
    start = pyro.param("hamiltonian.step_size").detach().clone()
    for _ in range(60):
        svi.step(*args)
    assert svi.evaluate_loss(*args) < before
    assert not torch.allclose(start, pyro.param("hamiltonian.step_size"))
    assert (pyro.param("hamiltonian.step_size") < 0.5).all()

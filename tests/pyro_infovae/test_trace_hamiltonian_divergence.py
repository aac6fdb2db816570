"""A flow that diverges does not spoil the training."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from tests.objectives import flows
from tests.pyro_infovae.half import PYRO

X = torch.tensor(flows.X)


def flow() -> TraceHamiltonian_ELBO:
    return flows.flow(PYRO, beta_0=0.7)


def test_too_large_a_step_warns_and_training_goes_on() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((3 * z).exp(), 1e-3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    x = torch.ones(16)
    objective = TraceHamiltonian_ELBO(10, 0.4, max_step_size=5.0, path="posterior")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    pyro.enable_validation(False)
    with pytest.warns(UserWarning, match=r"the flow of 'z' diverged in \d+ of 16 rows.*step_size"):
        loss = svi.step(x)
    assert math.isfinite(loss)
    for value in pyro.get_param_store().values():
        assert torch.isfinite(value).all()
    objective = TraceHamiltonian_ELBO(2, 1e-8, name="small", path="posterior")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    assert math.isfinite(svi.step(x))


@pytest.mark.parametrize("penalised", [False, True])
def test_a_gradient_that_is_not_finite_is_left_out(penalised: bool) -> None:
    """The square root's slope at 0 is infinite; the loss is finite."""

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide() -> None:
        loc, scale = (
            pyro.param("loc", torch.tensor(0.0)),
            pyro.param("scale", torch.tensor(1.0)),
        )
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc + 0.0 * loc.sqrt(), scale))

    objective = TraceMMD_ELBO(lambd=1.5, base=flow()) if penalised else flow()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=objective)
    pyro.enable_validation(False)
    with pytest.warns(UserWarning, match=r"gradient is not finite.*slope.*left out"):
        assert math.isfinite(svi.step())
    for value in pyro.get_param_store().values():
        assert torch.isfinite(value).all()
    assert pyro.param("scale").item() == 1.0


def test_a_divergence_below_a_penalty_spoils_no_parameter() -> None:
    def model() -> None:
        with pyro.plate("data", 16):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((3 * z).exp(), 1e-3), obs=torch.ones(16))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", 16):
            pyro.sample("z", dist.Normal(loc, 1.0))

    base = TraceHamiltonian_ELBO(10, 0.4, max_step_size=5.0, path="posterior")
    objective = TraceMMD_ELBO(base=base)
    pyro.enable_validation(False)
    with pytest.warns(UserWarning, match="step_size"):
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=objective).step()
    for value in pyro.get_param_store().values():
        assert torch.isfinite(value).all()

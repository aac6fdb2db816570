"""What training does whatever the objective: it goes on after a pause, and it drives a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from tests.pyro_infovae.programs import Programs


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroParam(torch.tensor([0.5, 0.3]))
        self.scale = PyroParam(torch.tensor(0.6), constraints.positive)
        self.linear = PyroModule[nn.Linear](2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.tanh(self.linear(z * self.weight))
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3, 2)
        self.spread = PyroParam(torch.full((2,), 0.4), constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.code(x), self.spread).to_event(1))


def assert_resumes(case: Programs, make_loss: Callable[[], ELBO], folder: Path) -> None:
    """Saved, loaded and trained further with a fresh objective, all stays the same."""

    def start() -> tuple[SVI, pyro.optim.PyroOptim]:
        pyro.clear_param_store()
        optim = pyro.optim.Adam({"lr": 1e-2})
        return SVI(case.model, case.guide, optim, loss=make_loss()), optim

    svi, optim = start()
    for _ in range(5):
        svi.step(*case.args)
    pyro.get_param_store().save(folder / "params")
    optim.save(folder / "optim")
    pyro.set_rng_seed(7)
    expected = [svi.step(*case.args) for _ in range(4)]
    params = {name: value.clone() for name, value in pyro.get_param_store().items()}

    svi, optim = start()
    pyro.get_param_store().load(folder / "params")
    optim.load(folder / "optim")
    pyro.set_rng_seed(7)
    assert [svi.step(*case.args) for _ in range(4)] == expected
    for name, value in pyro.get_param_store().items():
        torch.testing.assert_close(value, params[name])


def losses_of_module(module: nn.Module, x: Tensor, *, steps: int) -> list[float]:
    """The losses of an objective that is a module, trained by an optimiser of torch."""
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = module(x)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses

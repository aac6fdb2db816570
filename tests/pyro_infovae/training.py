"""What training does whatever the objective: it goes on after a pause, and it drives a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from tests.pyro_infovae.programs import Programs


def assert_resumes(case: Programs, make_loss: Callable[[], ELBO], folder: Path) -> None:
    """Saved, loaded and trained further with a fresh objective, the losses are the same."""

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

    svi, optim = start()
    pyro.get_param_store().load(folder / "params")
    optim.load(folder / "optim")
    pyro.set_rng_seed(7)
    assert [svi.step(*case.args) for _ in range(4)] == expected


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

"""A VAE for CompiledSVI, and how its steps are compared with those of SVI."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_infovae.compile import CompiledSVI


class Net(nn.Module):
    """A VAE as a module, that counts the runs of its guide."""

    def __init__(self, *layers: nn.Module, beta: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder = nn.Sequential(nn.Linear(3, 4), *layers, nn.Tanh(), nn.Linear(4, 2))
        self.decoder = nn.Linear(2, 3)
        self.prior_loc = nn.Linear(1, 2)
        self.beta = beta
        self.runs: list[int] = []

    def model(self, x: Tensor, *, noise: float | Tensor = 0.7) -> None:
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]):
            loc = self.prior_loc(x.new_ones(1))
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x: Tensor, *, noise: float | Tensor = 0.7) -> None:
        self.runs.append(x.shape[0])
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=self.beta):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def like_svi(run: Callable[..., Any], *, tolerance: float = 1e-6) -> Callable[..., None]:
    """A test that a run gives the same with either class, parameters included."""

    @wraps(run)
    def test(**arguments: Any) -> None:
        results = []
        for svi in (SVI, CompiledSVI):
            pyro.clear_param_store()
            pyro.set_rng_seed(3)
            result = run(svi, **arguments)
            parameters = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
            results.append((result, parameters))
        expected, ours = results
        assert expected[1]
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)

    given = [p for name, p in inspect.signature(run).parameters.items() if name != "svi"]
    test.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    return test


def adam() -> Any:
    return pyro.optim.Adam({"lr": 1e-2})


def no_runs(net: Net, step: Callable[[], float]) -> float:
    """A step in which the guide does not run."""
    before = len(net.runs)
    loss = step()
    assert len(net.runs) == before
    return loss

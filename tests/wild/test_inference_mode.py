"""A flow is evaluated where nothing can be differentiated, as validation loops do."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.diagnostics import log_evidence

decoder = torch.nn.Sequential(
    torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
).double()


def model(x: Tensor) -> None:
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], scale).to_event(1))


@pytest.mark.filterwarnings("ignore:log_evidence")
@pytest.mark.parametrize("kept", [True, False])
def test_a_flow_under_inference_mode(kept: bool) -> None:
    """Its data may be made there too, as a loader's are."""
    elbo, x = TraceHamiltonian_ELBO(step_size=0.05), torch.linspace(-1, 1, 12).reshape(4, 3)
    module = elbo(model, guide)

    def evaluated() -> tuple[float, float, Tensor]:
        data = x if kept else x.clone()
        losses = []
        for evaluate in (
            lambda: elbo.loss(model, guide, data),
            lambda: float(module(data).detach()),
        ):
            pyro.set_rng_seed(0)
            losses.append(evaluate())
        pyro.set_rng_seed(0)
        found = log_evidence(model, guide, data, elbo=elbo, num_samples=20)
        return losses[0], losses[1], found.log_weights

    evaluated()
    plain = evaluated()
    with torch.inference_mode():
        inferred = evaluated()
    assert inferred[:2] == plain[:2]
    torch.testing.assert_close(inferred[2], plain[2])

"""A VAE of networks, which can be on a device and in half precision, and its objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.elbo import ELBO, ELBOModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_infovae import (
    ConcatCritic,
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)

BFLOAT16 = 0.05
"""The relative error of a step with weights and activations of 8 significant bits."""

NUM_DATA, BATCH, PIXELS, LATENT = 1000, 96, 6, 4


class Model(nn.Module):
    """A decoder.

    Args:
        raised: Whether its outputs are raised to float32.
    """

    def __init__(self, *, raised: bool) -> None:
        super().__init__()
        self.decoder = _mlp(LATENT, PIXELS, seed=7)
        self.raised = raised

    def forward(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with _plate(x):
            # A number in place of a tensor would be sent to the device, for which the host waits.
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), x.new_ones(())).to_event(1))
            loc = _raised(self.decoder(z), self.raised)
            pyro.sample("x", dist.Normal(loc, loc.new_full((), 0.7)).to_event(1), obs=x)


class Guide(nn.Module):
    """An encoder.

    Args:
        raised: Whether its outputs are raised to float32.
    """

    def __init__(self, *, raised: bool) -> None:
        super().__init__()
        self.encoder = _mlp(PIXELS, 2 * LATENT, seed=8)
        self.raised = raised

    def forward(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with _plate(x):
            loc, raw_scale = _raised(self.encoder(x), self.raised).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(raw_scale) + 0.1).to_event(1))


def critic(kind: type[nn.Module] = SeparableCritic) -> nn.Module:
    torch.manual_seed(1)
    return kind(x_dim=PIXELS, z_dim=LATENT, hidden=(16,))


OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "unbiased": partial(TraceMMD_ELBO, 0.0, 100.0),
    "biased": partial(TraceMMD_ELBO, 0.3, 100.0, estimator="biased"),
    "closed form": partial(TraceMMD_ELBO, 1.0, 100.0, estimator="closed_form"),
    "InfoMax": lambda: TraceInfoMax_ELBO(critic()),
    "all negatives": lambda: TraceInfoMax_ELBO(critic(), negatives="all"),
    "in blocks": lambda: TraceInfoMax_ELBO(critic(ConcatCritic), negatives="all", bound="js"),
    "Hamiltonian": lambda: TraceHamiltonian_ELBO(3, 0.05),
    "MMD of Hamiltonian": lambda: TraceMMD_ELBO(0.0, 100.0, base=TraceHamiltonian_ELBO(2, 0.05)),
}


def build(objective: str, *, raised: bool = False) -> ELBOModule:
    """Model, guide and objective as one module whose call is the loss."""
    pyro.clear_param_store()
    return OBJECTIVES[objective]()(Model(raised=raised), Guide(raised=raised))


def data(device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(BATCH, PIXELS, generator=generator, dtype=torch.float32).to(device)


class Step(NamedTuple):
    """A loss, and the gradients by parameter."""

    loss: Tensor
    gradients: Mapping[str, Tensor]

    def distance(self, other: Step) -> float:
        """The greatest relative difference of the gradients of a part, or of the loss.

        Parts are the model, the guide, a critic and a flow.
        """
        pairs = [(self.loss, other.loss)]
        for part in {name.split(".")[0] for name in other.gradients}:
            names = [name for name in other.gradients if name.startswith(f"{part}.")]
            pairs.append((_flat(self.gradients, names), _flat(other.gradients, names)))
        return max(float((a.cpu() - b.cpu()).norm() / b.norm()) for a, b in pairs)


def take_step(module: nn.Module, x: Tensor, *, autocast: torch.dtype | None = None) -> Step:
    """A loss, under autocast to a dtype if given, and its gradients outside of it."""
    pyro.set_rng_seed(3)
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        loss = module(x)
    loss.backward()
    gradients = {
        name.removeprefix("module."): parameter.grad
        for name, parameter in module.named_parameters()
    }
    return Step(loss.detach(), gradients)


def _flat(gradients: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([gradients[name].float().flatten() for name in names])


def _plate(x: Tensor) -> pyro.plate:
    return pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x), device=x.device))


def _raised(outputs: Tensor, raised: bool) -> Tensor:
    return outputs.float() if raised else outputs


def _mlp(inputs: int, outputs: int, *, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))

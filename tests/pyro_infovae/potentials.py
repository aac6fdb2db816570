"""A nonlinear potential, and two ways to its gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_infovae._arrays.checkpointing import checkpointed_gradient

Sites = dict[str, Tensor]


def quartic(u: Sites) -> Tensor:
    """A nonlinear potential that couples its two sites, row by row."""
    return (
        (0.5 * u["a"] ** 2).sum() + (u["b"] ** 4 / 4).sum() + (u["a"].sum(-1) * u["b"].sin()).sum()
    )


def force_of(potential: Callable[[Sites], Tensor]) -> Callable[[Sites], tuple[Sites, Tensor]]:
    def gradient(u: Sites) -> tuple[Sites, Tensor]:
        with torch.enable_grad():
            own = {site: value.view_as(value) for site, value in u.items()}
            own = {s: v if v.requires_grad else v.requires_grad_() for s, v in own.items()}
            energy = potential(own)
            gradients = torch.autograd.grad(energy, tuple(own.values()), create_graph=True)
        return dict(zip(own, gradients, strict=True)), energy

    return gradient


def recomputed(potential: Callable[[Sites], Tensor]) -> Callable[[Sites], tuple[Sites, Tensor]]:
    def gradient(u: Sites) -> tuple[Sites, Tensor]:
        gradients, energy = checkpointed_gradient(
            lambda *values: potential(dict(zip(u, values, strict=True))), tuple(u.values())
        )
        return dict(zip(u, gradients, strict=True)), energy

    return gradient

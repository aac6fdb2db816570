# SPDX-License-Identifier: MIT
"""A step's loss and gradients by Pyro itself, with a note of what it reads and changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_infovae._compiled_step.guards import Source


@dataclass(frozen=True)
class Observation:
    """A step that Pyro took.

    Attributes:
        loss: the loss in nats.
        leaves: the unconstrained parameters that it reads, by name.
        gradients: what it added to their gradients, where it added something.
        modules: the modules that it calls.
        changed: the buffers that it changes.
        before: what these held before.
    """

    loss: float
    leaves: dict[str, Tensor]
    gradients: dict[str, Tensor]
    modules: tuple[nn.Module, ...]
    changed: tuple[Source, ...]
    before: tuple[Tensor, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the loss and all gradients are finite."""
        return math.isfinite(self.loss) and all(
            bool(gradient.isfinite().all()) for gradient in self.gradients.values()
        )


def observe(step: Callable[[], float]) -> Observation:
    """Take a step and note what it does; the gradients of parameters are left as it leaves them.

    Args:
        step: adds a gradient to every parameter, and returns the loss.
    """
    modules: dict[int, nn.Module] = {}
    buffers: list[tuple[Source, Tensor, Tensor]] = []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) not in modules:
            modules[id(module)] = module
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    source = Source(module._buffers, key, f"{type(module).__name__}.{key}")
                    buffers.append((source, buffer, buffer.clone()))

    with register_module_forward_pre_hook(note), poutine.trace(param_only=True) as parameters:
        loss = step()
    leaves = {name: _leaf_of(site["value"]) for name, site in parameters.trace.nodes.items()}
    changed = [
        (source, before)
        for source, buffer, before in buffers
        if source.value is not buffer or not torch.equal(buffer, before)
    ]
    return Observation(
        loss=loss,
        leaves=leaves,
        gradients={
            name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None
        },
        modules=tuple(modules.values()),
        changed=tuple(source for source, _ in changed),
        before=tuple(before for _, before in changed),
    )


def _leaf_of(parameter: Tensor) -> Tensor:
    """The unconstrained leaf, which optimisers step; under ``module_local_params`` itself."""
    return parameter.unconstrained() if hasattr(parameter, "unconstrained") else parameter

# SPDX-License-Identifier: MIT
"""A step's loss and gradients by Pyro itself, with a note of what it reads and changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_infovae._compiled_step.surroundings import Place


@dataclass(frozen=True)
class Observation:
    """A step that Pyro took.

    Attributes:
        loss: the loss in nats.
        leaves: the unconstrained parameters that it reads, by name.
        gradients: what it added to their gradients; None where it added nothing.
        modules: the modules that it calls.
        changed: the buffers that it changes.
        before: what these held before.
    """

    loss: float
    leaves: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    modules: tuple[nn.Module, ...]
    changed: tuple[Place, ...]
    before: tuple[Tensor, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the loss and all gradients are finite."""
        gradients = [gradient for gradient in self.gradients.values() if gradient is not None]
        return math.isfinite(self.loss) and all(bool(g.isfinite().all()) for g in gradients)


def observe(step: Callable[[], float]) -> Observation:
    """Take a step and note what it does; the gradients of parameters are left as it leaves them.

    Args:
        step: adds a gradient to every parameter, and returns the loss.
    """
    with _modules_called() as called, poutine.trace(param_only=True) as parameters:
        loss = step()
    leaves = {name: leaf_of(site["value"]) for name, site in parameters.trace.nodes.items()}
    changed = [
        (place, held)
        for module, buffers in called.values()
        for key, (buffer, held) in buffers.items()
        if (place := Place(module._buffers, key, f"{type(module).__name__}.{key}")).value
        is not buffer
        or not torch.equal(buffer, held)
    ]
    return Observation(
        loss=loss,
        leaves=leaves,
        gradients={
            name: None if leaf.grad is None else leaf.grad.clone() for name, leaf in leaves.items()
        },
        modules=tuple(module for module, _ in called.values()),
        changed=tuple(place for place, _ in changed),
        before=tuple(held for _, held in changed),
    )


def leaf_of(parameter: Tensor) -> Tensor:
    """The unconstrained leaf of a parameter, which optimisers step.

    A plain torch parameter under ``module_local_params`` is its own.
    """
    return parameter.unconstrained() if hasattr(parameter, "unconstrained") else parameter


_Buffers = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def _modules_called() -> Iterator[dict[int, tuple[nn.Module, _Buffers]]]:
    called: dict[int, tuple[nn.Module, _Buffers]] = {}

    def note(module: nn.Module, _: Any) -> None:
        if id(module) not in called:
            buffers = {
                key: (buffer, buffer.clone())
                for key, buffer in module._buffers.items()
                if buffer is not None
            }
            called[id(module)] = module, buffers

    handle = register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()

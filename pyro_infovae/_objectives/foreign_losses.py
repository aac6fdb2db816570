# SPDX-License-Identifier: MIT
"""Losses as tensors of ELBOs whose own methods wait for the device, or know none."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from pyro.infer import RenyiELBO, TraceEnum_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_infovae._core.programs import Program
from pyro_infovae._traces.enumeration import enumerated_elbo
from pyro_infovae._traces.recording import full_size


def foreign_loss(
    elbo: ELBO, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The loss in nats, with the gradient that the ELBO's own step would add.

    Raises:
        NotImplementedError: for a ``RenyiELBO`` of several particles under a subsampled plate.
    """
    with _WholePlates() if _has_scale_in_exponent(elbo) else nullcontext():
        return _loss(elbo, model, guide, args, kwargs)


def _loss(
    elbo: ELBO, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.as_tensor(elbo.loss(model, guide, *args, **kwargs))
    methods = ("differentiable_loss", "loss_and_grads")
    own = next(name for kind in type(elbo).__mro__ for name in methods if name in vars(kind))
    if own == "differentiable_loss":
        loss: Tensor = elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss
    with _Surrogates() as surrogates:
        value = elbo.loss_and_grads(model, guide, *args, **kwargs)
    gradient = sum(surrogate - surrogate.detach() for surrogate in surrogates.found)
    return torch.as_tensor(value + gradient)


def enumerated_loss(
    elbo: TraceEnum_ELBO,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """The loss in nats, differentiable, so that a step can be captured.

    Pyro leaves out the terms of probability 0, if there are any; here each of them is a 0.
    """
    particles = [
        enumerated_elbo(*traces) for traces in elbo._get_traces(model, guide, args, kwargs)
    ]
    return torch.as_tensor(-sum(particles) / elbo.num_particles)


def _has_scale_in_exponent(elbo: ELBO) -> bool:
    return isinstance(elbo, RenyiELBO) and elbo.num_particles > 1


class _WholePlates(Messenger):
    """Refuses a minibatch: N / B times a log weight, exponentiated, gives no bound."""

    def _pyro_sample(self, msg: Message) -> None:
        for frame in msg["cond_indep_stack"]:
            if full_size(frame) > frame.size:
                raise NotImplementedError(
                    "Expected whole plates below RenyiELBO of several particles, for its bound "
                    f"would be lost; got plate '{frame.name}' with {frame.size} of "
                    f"{full_size(frame)} data: pass them all, or use base=Trace_ELBO()"
                )


class _Surrogates(TorchFunctionMode):
    """Keeps the tensors that an ELBO would differentiate itself, and differentiates none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.backward:
            self.found.append(args[0])
            return None
        return func(*args, **(kwargs or {}))

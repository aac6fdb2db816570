# SPDX-License-Identifier: MIT
"""Whether a captured step computes what Pyro's own step does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_infovae._compiled_step.captured_step import CapturedStep, Outputs
from pyro_infovae._compiled_step.observed_step import Observation

_CAUSE = (
    "a program that draws from other generators than torch's, or changes from run to run, cannot "
    "be replayed: train with pyro.infer.SVI"
)


def check_agreement(captured: CapturedStep, outputs: Outputs, observation: Observation) -> None:
    """Refuse a captured step that differs from Pyro's own by more than rounding.

    Args:
        captured: the captured step.
        outputs: what it computes, with the random numbers and buffers that Pyro's step had.
        observation: what Pyro's step did.

    Raises:
        RuntimeError: naming what differs.
    """
    ours = dict(zip(captured.trained, outputs.gradients, strict=True))
    theirs = {
        name: gradient
        for name, gradient in observation.gradients.items()
        if not captured.leaves[name]._backward_hooks
    }
    for name, gradient in theirs.items():
        if (gradient is None) != (name not in ours):
            state = "none" if gradient is None else "one"
            raise RuntimeError(
                f"Expected a gradient of parameter '{name}' in the captured step where Pyro's has "
                f"one; Pyro's has {state}: {_CAUSE}"
            )
    given = {name: gradient for name, gradient in theirs.items() if gradient is not None}
    # Autocast keeps a weight's cast, so that Pyro's step adds up its gradients in half precision.
    rounding = max(torch.finfo(dtype).eps for dtype in captured.graph.dtypes) ** 0.5
    # Where all gradients vanish, what is left are rounding errors of the loss.
    scale = max([rounding * abs(observation.loss), *map(_largest, given.values())])
    for name, gradient in given.items():
        _check(f"the gradient of '{name}'", ours[name], gradient, rounding * scale)
    losses = torch.tensor(outputs.loss), torch.tensor(observation.loss)
    _check("the loss", *losses, rounding * abs(observation.loss))
    for place, update in zip(captured.buffers, outputs.buffers, strict=True):
        held: Tensor = place.value
        _check(f"buffer {place.path}", update, held, rounding * _largest(held))


def check_unwritten(tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Refuse a captured step that writes into tensors that it only reads.

    Args:
        tensors: the tensors that it reads beside parameters and buffers.
        versions: their versions before the step was replayed.

    Raises:
        NotImplementedError: naming the shape of the tensor.
    """
    for tensor, version in zip(tensors, versions, strict=True):
        if tensor._version != version:
            raise NotImplementedError(
                "Expected a step that writes into its own tensors and buffers; got one that "
                f"writes into a tensor of shape {tuple(tensor.shape)} from elsewhere: register "
                "it as a buffer of a module whose forward writes into it"
            )


def _check(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    if not torch.allclose(ours, theirs, rtol=0, atol=tolerance):
        raise RuntimeError(
            f"Expected the captured step to agree with Pyro's; got another value of {what}: "
            f"{_CAUSE}"
        )


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0

# SPDX-License-Identifier: MIT
"""The loss and the gradients of a training step, captured once and replayed with new numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae._arrays.checkpointing import graphs_kept, without_hooks
from pyro_infovae._compiled_step.enumerated_step import without_branches
from pyro_infovae._compiled_step.observed_step import Observation
from pyro_infovae._compiled_step.step_call import Call
from pyro_infovae._compiled_step.step_graph import StandIns, StepGraph, Symbolic, trace
from pyro_infovae._compiled_step.surroundings import Place, Surroundings
from pyro_infovae._objectives.base_elbo import TensorLoss, has_tensor_loss, tensor_loss
from pyro_infovae._traces.runs import Program
from pyro_infovae.penalised_elbo import PenalisedELBO


class Outputs(NamedTuple):
    """What a captured step computes.

    Attributes:
        loss: the loss in nats.
        is_finite: whether the loss is finite, and the gradients too where the objective minds.
        gradients: of the trained parameters.
        buffers: the new values of the buffers that the step changes.
    """

    loss: float
    is_finite: bool
    gradients: Sequence[Tensor]
    buffers: Sequence[Tensor]


@dataclass(frozen=True)
class CapturedStep:
    """The loss and the gradients of a step as a graph of tensor operations.

    Attributes:
        call: what it was captured with.
        surroundings: what it depends on beside the call.
        leaves: the unconstrained parameters that it reads, by name.
        trained: the names of those that have a gradient.
        buffers: where the buffers are that it changes.
        symbolic: for each tensor of the call, which of its sizes may differ.
        graph: the operations.
    """

    call: Call
    surroundings: Surroundings
    leaves: dict[str, Tensor]
    trained: tuple[str, ...]
    buffers: tuple[Place, ...]
    symbolic: tuple[Symbolic, ...]
    graph: StepGraph

    def change(self, call: Call) -> str | None:
        """Why it does not hold for a call; None where it does."""
        reason = self.call.change(call) or self.surroundings.change()
        if reason is None and not self._admits(call):
            return f"the arguments' shapes are {[tuple(shape) for shape in call.shapes]}"
        return reason

    def differing(self, call: Call) -> tuple[Symbolic, ...]:
        """For each tensor of a call, which sizes differ from the captured ones or may differ."""
        return tuple(
            tuple(free or a != b for free, a, b in zip(sizes, before, after, strict=True))
            for sizes, before, after in zip(
                self.symbolic, self.call.shapes, call.shapes, strict=True
            )
        )

    def by_inductor(self, call: Call) -> CapturedStep:
        """The same step, its operations compiled by TorchInductor for the sizes of a call."""
        return replace(self, graph=self.graph.by_inductor(self._inputs(call)))

    def replay(self, call: Call, buffers: Sequence[Tensor] | None = None) -> Outputs:
        """Compute a step, which changes nothing but the state of the random generators.

        Args:
            call: the arguments.
            buffers: other values of the buffers that the step changes.
        """
        report, *computed = self.graph(self._inputs(call, buffers))
        loss, *others = report.tolist()
        is_finite = math.isfinite(loss) and all(map(math.isfinite, others))
        num_trained = len(self.trained)
        return Outputs(loss, is_finite, computed[:num_trained], computed[num_trained:])

    def _inputs(self, call: Call, buffers: Sequence[Tensor] | None = None) -> list[Tensor]:
        held = [place.value for place in self.buffers] if buffers is None else buffers
        return [*self.leaves.values(), *held, *self.surroundings.tensors, *call.tensors]

    def _admits(self, call: Call) -> bool:
        if call.shapes == self.call.shapes:
            return True
        return self.differing(call) == self.symbolic and self.graph.admits(self._inputs(call))


def capture(
    objective: ELBO,
    model: Program,
    guide: Program,
    call: Call,
    observation: Observation,
    around: Surroundings,
    *,
    symbolic: tuple[Symbolic, ...],
) -> CapturedStep:
    """Capture a step, which computes nothing.

    Args:
        objective: an objective with a differentiable loss.
        model: the model.
        guide: the guide.
        call: the arguments of both.
        observation: the step, taken by Pyro with the same arguments.
        around: what it depends on beside the arguments.
        symbolic: for each tensor of the call, which of its sizes may differ.

    Raises:
        NotImplementedError: where the step's course depends on the numbers in a tensor.
    """
    leaves, changed = observation.leaves, observation.changed
    originals = [place.value for place in changed]
    read = [*leaves.values(), *originals, *around.tensors]
    trained: list[str] = []

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        own, given = inputs[: len(read)], inputs[len(read) :]
        end = len(leaves) + len(changed)
        copies = [buffer.clone() for buffer in own[len(leaves) : end]]
        stand_ins = zip(read, [*own[: len(leaves)], *copies, *own[end:]], strict=True)
        args, kwargs = call.with_tensors(given)
        with _put_back(around.places):
            with (
                pyro.validation_enabled(False),
                graphs_kept(),
                # They are called with every step's gradients, not with those of the capture.
                without_hooks(leaves.values()),
                StandIns({id(tensor): stand_in for tensor, stand_in in stand_ins}),
            ):
                loss = _loss(_apart(objective), model, guide, args, kwargs)
                gradients = _gradients(loss, leaves)
            updates = [
                stand_in if place.value is original else place.value
                for place, original, stand_in in zip(changed, originals, copies, strict=True)
            ]
        trained.extend(gradients)
        owned = _owned(gradients.values(), inputs)
        minded = owned if _minds_gradients(objective) else []
        # A sum is as finite as its parts.
        report = torch.stack([loss.detach(), *(gradient.sum().to(loss) for gradient in minded)])
        return report, *owned, *updates

    static = [(False,) * tensor.dim() for tensor in read]
    graph = trace(step, [*read, *call.tensors], [*static, *symbolic])
    return CapturedStep(call, around, leaves, tuple(trained), changed, symbolic, graph)


def _apart(objective: ELBO) -> ELBO:
    """An objective of its own, for what it notes about its runs is not to be seen."""
    if type(objective) is TraceEnum_ELBO:
        return without_branches(objective)
    apart = copy.copy(objective)
    if isinstance(apart, PenalisedELBO):
        apart.base = _apart(apart.base)
    return apart


def _loss(objective: ELBO, model: Program, guide: Program, args: Any, kwargs: Any) -> Tensor:
    if has_tensor_loss(objective):
        return tensor_loss(objective, model, guide, args, kwargs)
    loss: Tensor = objective.differentiable_loss(model, guide, *args, **kwargs)
    return loss


def _gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    if not names or not loss.requires_grad:
        return {}
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    return {
        name: gradient
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None
    }


def _owned(gradients: Iterable[Tensor], inputs: Iterable[Tensor]) -> list[Tensor]:
    """Gradients whose memory is their own, for optimisers and hooks to write into."""
    taken = {tensor.untyped_storage()._cdata for tensor in inputs}
    owned = []
    for gradient in gradients:
        dense = gradient.contiguous()
        owned.append(dense.clone() if dense.untyped_storage()._cdata in taken else dense)
        taken.add(dense.untyped_storage()._cdata)
    return owned


def _minds_gradients(objective: ELBO) -> bool:
    """Whether an objective leaves out gradients that are not finite."""
    while isinstance(objective, PenalisedELBO):
        objective = objective.base
    return isinstance(objective, TensorLoss) and type(objective).guarded is not TensorLoss.guarded


@contextmanager
def _put_back(places: Sequence[Place]) -> Iterator[None]:
    before = [place.value for place in places]
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.entries[place.key] = value

# SPDX-License-Identifier: MIT
"""The loss and the gradients of a training step, captured once and replayed with new numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae._arrays.checkpointing import graphs_kept, without_hooks
from pyro_infovae._compiled_step.guards import Call, Guards, Source, guards_of
from pyro_infovae._compiled_step.observed_step import Observation
from pyro_infovae._compiled_step.step_graph import StandIns, StepGraph, Symbolic, trace
from pyro_infovae._core.programs import Program
from pyro_infovae._objectives.objective import evaluate

_CAUSE = (
    "a program that draws from other generators than torch's, or changes from run to run, cannot "
    "be replayed: train with pyro.infer.SVI"
)


class Outputs(NamedTuple):
    """What a captured step computes.

    Attributes:
        loss: the loss in nats.
        is_finite: whether the loss is finite, and the gradients too where the objective minds.
        gradients: those of the parameters that have one, by name.
        buffers: the new values of the buffers that the step changes.
    """

    loss: float
    is_finite: bool
    gradients: dict[str, Tensor]
    buffers: Sequence[Tensor]


@dataclass(frozen=True)
class CapturedStep:
    """The loss and the gradients of a step as a graph of tensor operations.

    Attributes:
        call: what it was captured with.
        guards: what it depends on beside the call.
        leaves: the unconstrained parameters that it reads, by name.
        buffers: those that it changes.
        graph: the operations.
    """

    call: Call
    guards: Guards
    leaves: dict[str, Tensor]
    buffers: tuple[Source, ...]
    graph: StepGraph

    def change(self, call: Call) -> str | None:
        """Why it does not hold for a call; None where it does."""
        reason = self.call.change(call) or self.guards.change()
        if reason or call.shapes == self.call.shapes or self.graph.admits(self._inputs(call)):
            return reason
        return f"the arguments' shapes are {call.shapes}"

    def by_inductor(self, call: Call) -> CapturedStep:
        """The same step, its operations compiled by TorchInductor for the sizes of a call."""
        return replace(self, graph=self.graph.by_inductor(self._inputs(call)))

    def replay(self, call: Call, buffers: Sequence[Tensor] | None = None) -> Outputs:
        """Compute a step, which changes nothing but the state of the random generators.

        Args:
            call: the arguments.
            buffers: other values of the buffers that the step changes.
        """
        computed = self.graph(self._inputs(call, buffers))
        loss, *others = computed["report"].tolist()
        is_finite = all(map(math.isfinite, (loss, *others)))
        return Outputs(loss, is_finite, computed["gradients"], computed["buffers"])

    def check(self, call: Call, observation: Observation) -> bool:
        """Compare a replayed step with Pyro's own; False where there are no numbers to compare.

        Args:
            call: the arguments of Pyro's step, whose random numbers are to come next.
            observation: what it did.

        Raises:
            NotImplementedError: for a step that writes into tensors that it only reads.
            RuntimeError: for one that differs by more than rounding, naming what differs.
        """
        only_read = [*self.graph.constants, *self.guards.tensors]
        versions = [tensor._version for tensor in only_read]
        outputs = self.replay(call, observation.before)
        if not (outputs.is_finite and observation.is_finite):
            return False
        for tensor, version in zip(only_read, versions, strict=True):
            if tensor._version != version:
                raise NotImplementedError(
                    "Expected a step that writes into its own tensors and buffers; got one that "
                    f"writes into a tensor of shape {tuple(tensor.shape)} from elsewhere: register "
                    "it as a buffer of a module whose forward writes into it"
                )
        self._compare(outputs, observation)
        return True

    def _compare(self, outputs: Outputs, observation: Observation) -> None:
        hooked = {name for name, leaf in self.leaves.items() if leaf._backward_hooks}
        ours, theirs = (
            {name: gradient for name, gradient in gradients.items() if name not in hooked}
            for gradients in (outputs.gradients, observation.gradients)
        )
        for name in ours.keys() ^ theirs.keys():
            state = "one" if name in theirs else "none"
            raise RuntimeError(
                f"Expected a gradient of parameter '{name}' in the captured step where Pyro's has "
                f"one; Pyro's has {state}: {_CAUSE}"
            )
        # Autocast keeps a weight's cast, so that Pyro's step adds up its gradients in half
        # precision.
        rounding = max(torch.finfo(dtype).eps for dtype in self.graph.dtypes) ** 0.5
        # Where all gradients vanish, what is left are rounding errors of the loss.
        scale = max([abs(observation.loss) * rounding, *map(_largest, theirs.values())])
        for name, gradient in theirs.items():
            _check(f"the gradient of '{name}'", ours[name], gradient, rounding * scale)
        losses = torch.tensor(outputs.loss), torch.tensor(observation.loss)
        _check("the loss", *losses, rounding * abs(observation.loss))
        for source, update in zip(self.buffers, outputs.buffers, strict=True):
            held: Tensor = source.value
            _check(f"buffer {source.path}", update, held, rounding * _largest(held))

    def _inputs(self, call: Call, buffers: Sequence[Tensor] | None = None) -> list[Tensor]:
        held = [source.value for source in self.buffers] if buffers is None else buffers
        return [*self.leaves.values(), *held, *self.guards.tensors, *call.tensors]


def capture(
    objective: ELBO,
    model: Program,
    guide: Program,
    call: Call,
    observation: Observation,
    *,
    symbolic: Sequence[Symbolic],
) -> CapturedStep:
    """Capture a step, which computes nothing.

    Args:
        objective: an objective with a differentiable loss.
        model: the model.
        guide: the guide.
        call: the arguments of both.
        observation: the step, taken by Pyro with the same arguments.
        symbolic: for each tensor of the call, which of its sizes may differ.

    Raises:
        NotImplementedError: where the step's course depends on the numbers in a tensor.
    """
    leaves, changed = observation.leaves, observation.changed
    guards = guards_of(objective, (model, guide), observation.modules, leaves, changed=changed)
    buffers = [source.value for source in changed]
    read = [*leaves.values(), *buffers, *guards.tensors]

    def step(*inputs: Tensor) -> dict[str, Any]:
        stand_ins = dict(zip(map(id, read), inputs[: len(read)], strict=True))
        # A step writes into its buffers, and must not write into its inputs.
        stand_ins.update({id(buffer): stand_ins[id(buffer)].clone() for buffer in buffers})
        args, kwargs = call.with_tensors(inputs[len(read) :])
        with (
            pyro.validation_enabled(False),
            graphs_kept(),
            # They are called with every step's gradients, not with those of the capture.
            without_hooks(leaves.values()),
            StandIns(stand_ins),
        ):
            evaluation = evaluate(objective, model, guide, args, kwargs)
            loss = evaluation.loss
            gradients = _owned(_gradients(loss, leaves), inputs)
        # Where something of a flow is not finite, the step is Pyro's.
        rows = [rows for sites in evaluation.finite.values() for rows in sites.values()]
        unsound = [torch.where(finite.all(), 0.0, math.nan).to(loss) for finite in rows]
        minded = gradients.values() if evaluation.finite else ()
        # A sum is as finite as its parts.
        sums = [gradient.sum().to(loss) for gradient in minded]
        report = torch.stack([loss.detach(), *sums, *unsound])
        updates = [stand_ins.get(id(source.value), source.value) for source in changed]
        return {"report": report, "gradients": gradients, "buffers": updates}

    static = [(False,) * tensor.dim() for tensor in read]
    before = [source.value for source in guards.sources]
    try:
        graph = trace(step, [*read, *call.tensors], [*static, *symbolic])
    finally:
        for (entries, key, _), value in zip(guards.sources, before, strict=True):
            entries[key] = value
    return CapturedStep(call, guards, leaves, changed, graph)


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


def _owned(gradients: Mapping[str, Tensor], inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Gradients whose memory is their own, for optimisers and hooks to write into."""
    taken = {tensor.untyped_storage()._cdata for tensor in inputs}
    owned = {}
    for name, gradient in gradients.items():
        dense = gradient.contiguous()
        owned[name] = dense.clone() if dense.untyped_storage()._cdata in taken else dense
        taken.add(dense.untyped_storage()._cdata)
    return owned


def _check(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    if not torch.allclose(ours, theirs, rtol=0, atol=tolerance):
        raise RuntimeError(
            f"Expected the captured step to agree with Pyro's; got another value of {what}: "
            f"{_CAUSE}"
        )


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0

# SPDX-License-Identifier: MIT
"""From a function of tensors to its graph of tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_infovae._arrays.full_precision import without_autocast
from pyro_infovae._compiled_step.graph_passes import shorten

Symbolic = Sequence[bool]
"""Which of a tensor's sizes may differ from the one it was traced with."""


@dataclass(frozen=True)
class StepGraph:
    """A function's operations, as a function itself.

    Attributes:
        module: the operations as they were traced.
        function: fewer of them, or compiled ones, with the same results.
        admits: whether inputs have sizes that the operations hold for.
    """

    module: GraphModule
    function: Callable[..., Any]
    admits: Callable[[Sequence[Tensor]], bool]

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """Tensors that it reads beside its inputs, afresh at every call."""
        return tuple(self.module.buffers())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The floating-point dtypes that it computes in."""
        values = (node.meta.get("val") for node in self.module.graph.nodes)
        return {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}

    def by_inductor(self, inputs: Sequence[Tensor]) -> StepGraph:
        """The same operations compiled for inputs of these sizes, with the same random numbers."""
        from torch._inductor.compile_fx import compile_fx  # slow to import

        with torch.no_grad(), without_autocast(inputs):
            function: Any = compile_fx(
                self.module,
                [tensor.detach() for tensor in inputs],
                config_patches={"fallback_random": True},
            )
        return replace(self, function=function)

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Compute it; the casts of autocast are among the operations."""
        with torch.no_grad(), without_autocast(inputs):
            return self.function(*inputs)


def trace(
    function: Callable[..., Any], inputs: Sequence[Tensor], symbolic: Sequence[Symbolic]
) -> StepGraph:
    """Trace the operations of a function, which computes nothing.

    Args:
        function: the function of the inputs.
        inputs: tensors of the shapes, dtypes and devices to trace with.
        symbolic: for each of them, the sizes that may differ.

    Raises:
        NotImplementedError: where the function's course depends on the numbers in a tensor.
    """
    environment = ShapeEnv(
        duck_shape=False, allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False
    )
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    fakes = [
        mode.from_tensor(
            tensor.detach(),
            source=ConstantSource(f"input_{i}"),
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DUCK if free else DimDynamic.STATIC for free in sizes]
            ),
        )
        for i, (tensor, sizes) in enumerate(zip(inputs, symbolic, strict=True))
    ]
    try:
        module = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        GuardOnDataDependentSymNode,
    ) as error:
        raise NotImplementedError(
            "Expected a step whose course does not depend on the numbers in its tensors; got one "
            f"that does, at {_place_of(error)}: compute with tensors alone (torch.where for if, "
            "no .item()), or train with pyro.infer.SVI"
        ) from error
    except Exception as error:
        error.add_note(
            "Raised where the step was captured as a graph of tensor operations: if only there, "
            "train with pyro.infer.SVI"
        )
        raise
    sizes = environment.produce_guards_expression(fakes, ignore_static=False)

    def admits(tensors: Sequence[Tensor]) -> bool:
        return sizes is None or environment.evaluate_guards_expression(sizes, tensors)

    return StepGraph(module, shorten(module).forward, admits)


class StandIns(TorchDispatchMode):
    """Lets other tensors stand in for those that a function reads by itself.

    Args:
        stand_ins: the other tensors, by the identity of those that they stand in for.
    """

    def __init__(self, stand_ins: Mapping[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stand_ins = stand_ins

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call an operation with the tensors that stand in."""
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda tensor: self.stand_ins.get(id(tensor), tensor), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _place_of(error: BaseException) -> str:
    """The innermost line of a traceback that is no library's; else the innermost of Pyro's."""
    lines = [
        (frame.f_globals.get("__name__", "").split(".")[0], _described(frame, number))
        for frame, number in walk_tb(error.__traceback__)
        if frame.f_code.co_name != "torch_item"  # of Pyro's, by which its objectives read numbers
    ]
    lines = [line for line in lines if line[0] not in ("torch", "contextlib")]
    own = [line for line in lines if line[0] not in ("pyro", "pyro_infovae")]
    pyros = [line for line in lines if line[0] == "pyro"]
    # The outermost line is that of the caller of this library.
    return (own[1:] or pyros or lines)[-1][1]


def _described(frame: FrameType, number: int) -> str:
    """A line of code, and the objective whose it is."""
    owner = frame.f_locals.get("self")
    objective = f" of {type(owner).__name__}" if isinstance(owner, ELBO) else ""
    return f"{frame.f_code.co_filename}:{number}{objective}"

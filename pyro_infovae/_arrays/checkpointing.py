# SPDX-License-Identifier: MIT
r"""Gradients that are differentiable again, recomputed in backward instead of kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import get_device_states, set_device_states

from pyro_infovae._arrays.full_precision import autocast_of_now

__all__ = [
    "checkpointed_gradient",
    "differentiable",
    "graphs_kept",
    "if_it_stands",
    "keeps_graphs",
    "random_state",
    "replayed",
    "trial",
    "tries_first",
    "untried",
    "without_hooks",
]

Function = Callable[..., Tensor]
T = TypeVar("T")

_GRAPHS_KEPT = ContextVar("graphs_kept", default=False)
_UNTRIED: ContextVar[list[Callable[[], None]] | None] = ContextVar("untried", default=None)


def checkpointed_gradient(
    function: Function,
    inputs: Sequence[Float[Tensor, "..."]],
    captured: Sequence[Tensor] = (),
) -> tuple[tuple[Float[Tensor, "..."], ...], Float[Tensor, ""]]:
    r"""Gradient of a scalar function, differentiable, without keeping the function's graph.

    .. math:: g_i = \partial f(x_1, \dots, x_n, c_1, \dots, c_m) / \partial x_i

    The values equal those of ``torch.autograd.grad(..., create_graph=True)``, and so do their
    vector-Jacobian products: for the inputs, the captured tensors and every leaf (parameter) that
    f reads. These tensors alone are kept for backward, which evaluates f and its gradient again.
    Hence a chain of gradients takes the memory of one.

    f is a black box, called once now and once in backward. It must give the same result both times,
    whatever is active around the call; random numbers that it draws are replayed, and so is
    autocast, which backward is usually outside of. Derivatives are partial: an argument that was
    computed from another one counts as independent of it.

    Works under ``torch.no_grad()`` and ``torch.inference_mode()``, where nothing is kept. The
    result can be differentiated once.

    Args:
        function: The scalar f, called as ``function(*inputs, *captured)``.
        inputs: Tensors to differentiate in.
        captured: Other tensors computed outside of f, which it must read from its arguments.
            Parameters need not be listed. A tensor that is computed from parameters and reaches f
            in another way gets its gradient too, but then the graph is kept.

    Returns:
        The gradients, shaped as the inputs (0 where f does not depend on one), and the value of f.

    Raises:
        ValueError: If the value of f is not a scalar or has no graph.
        RuntimeError: In backward, under ``create_graph=True``, or where f reads other parameters
            than before.

    Example:
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> (gradient,), value = checkpointed_gradient(
        ...     lambda x: (weight * x**2).sum(), (torch.tensor([1.0, 2.0]),))
        >>> gradient.sum().backward()  # the sum is 2 * weight * (1 + 2)
        >>> weight.grad
        tensor(6.)
    """
    state = random_state(inputs)
    autocast = autocast_of_now(inputs)
    keep_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), autocast():
        first_node = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        inputs, captured = differentiable(inputs), differentiable(captured)
        own = (
            *(x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs),
            *(c.view_as(c) if c.requires_grad else c for c in captured),
        )
        value = function(*own)
        if value.shape != ():
            raise ValueError(f"Expected a scalar function; got shape {tuple(value.shape)}")
        if not value.requires_grad:
            raise ValueError("Expected a differentiable function; got a result without a graph")
        leaves: list[Tensor] | None = []
        if keep_graph:
            leaves = None if _GRAPHS_KEPT.get() else _leaves(value, own, first_node)
        gradients = torch.autograd.grad(
            value, own[: len(inputs)], create_graph=leaves is None, materialize_grads=True
        )
    if leaves is None:
        return gradients, value
    call = _Call(function, len(inputs), len(own), state, autocast)
    outputs = (*gradients, value.detach())
    *gradients, value = _Recomputed.apply(call, outputs, *inputs, *captured, *leaves)  # type: ignore[no-untyped-call]
    return tuple(gradients), value


def keeps_graphs() -> bool:
    """Whether :func:`graphs_kept` is around."""
    return _GRAPHS_KEPT.get()


@contextmanager
def trial(*tensors: Tensor) -> Iterator[None]:
    """No gradients, and the random numbers that are drawn are drawn again afterwards.

    Args:
        *tensors: on whose device they are.
    """
    with torch.no_grad(), replayed(random_state(tensors)):
        yield


@contextmanager
def untried() -> Iterator[list[Callable[[], None]]]:
    """Flows go ahead, and the caller looks afterwards whether a row diverged.

    Yields:
        What is to be done if the evaluation stands, see :func:`if_it_stands`.
    """
    pending: list[Callable[[], None]] = []
    token = _UNTRIED.set(pending)
    try:
        yield pending
    finally:
        _UNTRIED.reset(token)


def if_it_stands(action: Callable[[], None]) -> None:
    """Do something now, or once an evaluation that may be taken again is known to stand."""
    pending = _UNTRIED.get()
    if pending is None:
        action()
    else:
        pending.append(action)


def tries_first() -> bool:
    """Whether a flow is to find out, before gradients are made, which rows diverge."""
    # A captured step is not taken where a row diverges.
    return torch.is_grad_enabled() and _UNTRIED.get() is None and not _GRAPHS_KEPT.get()


@contextmanager
def graphs_kept() -> Iterator[None]:
    """Keep graphs instead of evaluating twice: quicker, in memory that grows with a chain."""
    token = _GRAPHS_KEPT.set(True)
    try:
        yield
    finally:
        _GRAPHS_KEPT.reset(token)


def differentiable(tree: T) -> T:
    """The same tree, the tensors of ``torch.inference_mode`` in it copied to ones with a graph."""
    return tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, tree)


class _Call(NamedTuple):
    function: Function
    num_inputs: int
    num_arguments: int
    random_state: "RandomState"
    autocast: Callable[[], AbstractContextManager[object]]


class _Recomputed(torch.autograd.Function):
    """Gradients and value that are at hand, with a backward that computes them again."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, outputs: tuple[Tensor, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Expected create_graph=False: a checkpointed gradient can be differentiated once"
            )
        function, num_inputs, num_arguments, random_state, autocast = ctx.call
        arguments = ctx.saved_tensors[:num_arguments]
        leaves = ctx.saved_tensors[num_arguments:]
        needed = ctx.needs_input_grad[2:]
        # Hooks of leaves are for the sum of their gradients, not for each part of it.
        with torch.enable_grad(), replayed(random_state), autocast(), without_hooks(leaves):
            first_node = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
            # Detached, so that nothing flows back from one argument to another.
            own = tuple(
                x.detach().requires_grad_(x.requires_grad or i < num_inputs)
                for i, x in enumerate(arguments)
            )
            value = function(*own)
            _check_leaves(leaves, _leaves(value, own, first_node))
            gradients = torch.autograd.grad(
                value, own[:num_inputs], create_graph=True, materialize_grads=True
            )
            pairs = [
                (output, cotangent)
                for output, cotangent in zip((*gradients, value), cotangents, strict=True)
                if cotangent is not None and output.requires_grad
            ]
            if not pairs:  # the gradient is constant
                return None, None, *(None for _ in needed)
            outputs, weights = zip(*pairs, strict=True)
            wanted = [x for x, need in zip((*own, *leaves), needed, strict=True) if need]
            products = iter(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))
        return None, None, *(next(products) if need else None for need in needed)


def _leaves(value: Tensor, own: Sequence[Tensor], first_node: int) -> list[Tensor] | None:
    """Leaves that ``value`` depends on beside ``own``; None if it reaches an older graph."""
    leaves: list[Tensor] = []
    seen = {x.grad_fn for x in own}
    pending = [value.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch._C._functions.AccumulateGrad):  # type: ignore[attr-defined]
            leaves.append(node.variable)
        elif node._sequence_nr() < first_node:
            return None
        pending.extend(following for following, _ in node.next_functions)
    return [leaf for leaf in leaves if not any(leaf is x for x in own)]


def _check_leaves(forward: Sequence[Tensor], backward: Sequence[Tensor] | None) -> None:
    if backward is None or {id(leaf) for leaf in forward} != {id(leaf) for leaf in backward}:
        raise RuntimeError(
            "Expected the function to read the parameters of forward again in backward; got "
            "others: call backward where they are still the ones in use"
        )


RandomState = tuple[Tensor, list[int], list[Tensor]]


def random_state(tensors: Sequence[Tensor] = ()) -> RandomState:
    """The state of the random numbers of the CPU and of some tensors' devices."""
    return torch.get_rng_state(), *get_device_states(*tensors[:1])


@contextmanager
def replayed(random_state: RandomState) -> Iterator[None]:
    """The random numbers that followed a state; afterwards those go on that were interrupted."""
    cpu_state, devices, device_states = random_state
    with torch.random.fork_rng(devices):
        torch.set_rng_state(cpu_state)
        set_device_states(devices, device_states)
        yield


@contextmanager
def without_hooks(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Leave the leaves' hooks uncalled."""
    hooked = [(leaf, leaf._backward_hooks) for leaf in leaves if leaf._backward_hooks]
    try:
        for leaf, _ in hooked:
            leaf._backward_hooks = None
        yield
    finally:
        for leaf, hooks in hooked:
            leaf._backward_hooks = hooks

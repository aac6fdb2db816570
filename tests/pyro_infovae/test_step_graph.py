"""Graphs of functions: exact, for any size where they may be, and no longer than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_infovae._arrays.checkpointing import checkpointed_gradient, graphs_kept
from pyro_infovae._compiled_step import graph_passes
from pyro_infovae._compiled_step.step_graph import StepGraph, trace
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

Function = Callable[..., tuple[Tensor, ...]]


def exact(function: Function, *inputs: Tensor) -> StepGraph:
    """The graph for inputs of these sizes; it gives exactly what the function gives."""
    graph = trace(function, inputs, [(False,) * tensor.dim() for tensor in inputs])
    for ours, expected in zip(graph(inputs), function(*inputs), strict=True):
        assert torch.equal(ours, expected)
    return graph


def rows_open(function: Function) -> StepGraph:
    """The graph for inputs of any number of rows."""
    return trace(function, [torch.rand(4, 3)], [(True, False)])


class Calls(TorchDispatchMode):
    """The names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def called(graph: StepGraph, *inputs: Tensor) -> list[str]:
    with Calls() as calls:
        graph(inputs)
    return calls.names


def with_gradients(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        value = function(x, y)
        return value.detach(), *torch.autograd.grad(value, (x, y))

    return both


def chained(x: Tensor, y: Tensor) -> Tensor:
    """Two checkpointed gradients, one of the other."""
    for _ in range(2):
        (gradient,), value = checkpointed_gradient(
            lambda x, y: ((x @ y.T).tanh() ** 2).sum(), (x,), (y,)
        )
        x = x - 0.1 * gradient
    return (x**3).sum() + value


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    return mmd_squared(x, y, RBF((0.5, 2.0)))


def kept(x: Tensor, y: Tensor) -> Tensor:
    with graphs_kept():
        return chained(x, y)


@pytest.mark.parametrize(("function", "num_tanh"), [(chained, 4), (kept, 2), (discrepancy, 0)])
def test_own_autograd_functions_are_traced_exactly(
    function: Callable[[Tensor, Tensor], Tensor], num_tanh: int
) -> None:
    x, y = torch.rand(2, 6, 3)
    graph = exact(with_gradients(function), x, y)
    assert called(graph, x, y).count("aten.tanh.default") == num_tanh


def test_kept_graphs_give_the_same() -> None:
    x, y = torch.rand(2, 6, 3)
    torch.testing.assert_close(with_gradients(kept)(x, y), with_gradients(chained)(x, y))


def test_sizes_may_be_open() -> None:
    graph = rows_open(lambda x: (x.sum(0) / x.shape[0],))
    x = torch.rand(7, 3)
    assert graph.admits([x])
    torch.testing.assert_close(graph([x])[0], x.mean(0))
    assert not graph.admits([torch.rand(7, 2)])


def test_sizes_that_a_function_looks_at_are_not() -> None:
    graph = rows_open(lambda x: (x if x.shape[0] < 5 else -x,))
    assert graph.admits([torch.rand(2, 3)])
    assert not graph.admits([torch.rand(5, 3)])
    counting = rows_open(lambda x: (x * len(x),))
    assert counting.admits([torch.rand(4, 3)])
    assert not counting.admits([torch.rand(5, 3)])


def test_tensors_from_elsewhere_are_read_as_they_are() -> None:
    x, scale = torch.rand(2, 3)
    graph = exact(lambda x: (x * scale,), x)
    scale.fill_(2.0)
    assert torch.equal(graph([x])[0], 2 * x)


def test_what_nobody_reads_is_left_out_but_for_draws_and_writes() -> None:
    def function(x: Tensor) -> tuple[Tensor]:
        x.exp().log()
        torch.rand_like(x)
        y = x.detach().view(3, 3).expand(3, 3).t().t().clone()
        y[0].zero_()
        return (y,)

    x = torch.ones(3, 3)
    graph = exact(function, x)
    assert called(graph, x) == [
        "aten.rand_like.default",
        "aten.clone.default",
        "aten.select.int",
        "aten.zero_.default",
    ]
    torch.manual_seed(0)
    graph([x])
    after = torch.rand(())
    torch.manual_seed(0)
    torch.rand(3, 3)
    assert after == torch.rand(())


def test_views_of_an_open_size_are_left_out_too() -> None:
    graph = rows_open(lambda x: (x.view(x.shape[0], 3) + x.view(-1, 1, 3)[:, 0],))
    x = torch.rand(5, 3)
    assert called(graph, x) == ["aten.add.Tensor"]
    assert torch.equal(graph([x])[0], 2 * x)


def test_views_that_are_the_same_are_one() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x.view(12).view(4, 3) * 2, x.view(2, 6).view(12) + x.view(12), x.t() * x.t()

    x = torch.rand(4, 3)
    assert sorted(called(exact(function, x), x)) == [
        *("aten.add.Tensor", "aten.mul.Tensor", "aten.mul.Tensor"),
        *("aten.t.default", "aten.view.default"),
    ]


def test_inputs_of_one_memory_may_come_apart() -> None:
    x = torch.rand(3)
    graph = exact(lambda x, y: (x.view(1, 3) * y.view(1, 3),), x, x)
    assert torch.equal(graph([x, x + 1])[0], x[None] * (x + 1))


def test_a_view_with_other_elements_stays() -> None:
    exact(lambda x: (x.view(3, 1, 3).transpose(0, 2).view(3, 3) + 1,), torch.rand(3, 3))
    exact(lambda x: (x.view(9)[3:6].view(3, 1) + x.view(9)[:3].view(3, 1),), torch.rand(3, 3))
    exact(lambda x: (x * x.conj(),), torch.rand(3, dtype=torch.complex128))


def offset(x: Tensor) -> tuple[Tensor, ...]:
    steps = torch.arange(x.shape[0], dtype=x.dtype)[:, None] / 2
    return (x * steps - torch.full_like(x, 3.0).neg(),)


def test_what_depends_on_no_input_is_computed_once() -> None:
    x = torch.rand(4, 3)
    assert called(exact(offset, x), x) == ["aten.mul.Tensor", "aten.sub.Tensor"]


def test_what_depends_on_an_open_size_is_not() -> None:
    graph, x = rows_open(offset), torch.rand(7, 3)
    assert graph.admits([x])
    assert torch.equal(graph([x])[0], offset(x)[0])


def test_what_is_returned_or_written_into_is_made_at_every_call() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros(3)
        total.view(3, 1)[0].add_(x[0])
        return torch.ones(2, 3)[:1], total * x

    x = torch.rand(3)
    graph = exact(function, x)
    for _ in range(2):
        returned, product = graph([x])
        assert torch.equal(returned, torch.ones(1, 3))
        assert torch.equal(product, torch.tensor([x[0], 0.0, 0.0]) * x)
        returned.zero_()


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_large_constant_is_not_kept(is_kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_passes, "MAX_BYTES", 8 * 50 * 50 - (not is_kept))
    x = torch.rand(50, 50)
    graph = exact(lambda x: (x + torch.ones(50, 50),), x)
    assert ("aten.ones.default" in called(graph, x)) != is_kept


def test_draws_are_no_constants() -> None:
    x = torch.rand(3)
    graph = trace(lambda x: (x * torch.rand(3).exp(),), [x], [(False,)])
    assert not torch.equal(graph([x])[0], graph([x])[0])

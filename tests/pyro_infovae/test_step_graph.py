"""Graphs of functions: exact, for any size where they may be, and no longer than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_infovae._arrays.checkpointing import checkpointed_gradient, graphs_kept
from pyro_infovae._compiled_step.constant_folding import fold_constants
from pyro_infovae._compiled_step.step_graph import StepGraph, trace
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

Function = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def operations(graph: StepGraph) -> list[str]:
    nodes = graph.module.graph.nodes
    return [str(node.target) for node in nodes if node.op == "call_function"]


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


@pytest.mark.parametrize("function", [chained, kept, discrepancy])
def test_own_autograd_functions_are_traced_exactly(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    step = with_gradients(function)
    graph = trace(step, torch.rand(2, 6, 3).unbind(), [(False, False)] * 2)
    x, y = torch.rand(2, 6, 3)
    for ours, expected in zip(graph((x, y)), step(x, y), strict=True):
        assert torch.equal(ours, expected)


def test_kept_graphs_evaluate_once_and_give_the_same() -> None:
    x, y = torch.rand(2, 6, 3)
    for ours, expected in zip(
        with_gradients(kept)(x, y), with_gradients(chained)(x, y), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    products = [
        operations(trace(with_gradients(function), (x, y), [(False, False)] * 2)).count(
            "aten.tanh.default"
        )
        for function in (kept, chained)
    ]
    assert products == [2, 4]


def test_sizes_may_be_open() -> None:
    graph = trace(lambda x: (x.sum(0) / x.shape[0],), [torch.rand(4, 3)], [(True, False)])
    x = torch.rand(7, 3)
    assert graph.admits([x])
    torch.testing.assert_close(graph([x])[0], x.mean(0))
    assert not graph.admits([torch.rand(7, 2)])


def test_sizes_that_a_function_looks_at_are_not() -> None:
    graph = trace(lambda x: (x if x.shape[0] < 5 else -x,), [torch.rand(4, 3)], [(True, False)])
    assert graph.admits([torch.rand(2, 3)])
    assert not graph.admits([torch.rand(5, 3)])
    counting = trace(lambda x: (x * len(x),), [torch.rand(4, 3)], [(True, False)])
    assert counting.admits([torch.rand(4, 3)])
    assert not counting.admits([torch.rand(5, 3)])


def test_tensors_from_elsewhere_are_read_as_they_are() -> None:
    scale = torch.rand(3)
    graph = trace(lambda x: (x * scale,), [torch.rand(3)], [(False,)])
    scale.fill_(2.0)
    x = torch.rand(3)
    assert torch.equal(graph([x])[0], 2 * x)


def test_what_nobody_reads_is_left_out_but_for_draws_and_writes() -> None:
    def function(x: Tensor) -> tuple[Tensor]:
        x.exp().log()
        torch.rand_like(x)
        y = x.detach().view(3, 3).expand(3, 3).t().t().clone()
        y[0].zero_()
        return (y,)

    graph = trace(function, [torch.rand(3, 3)], [(False, False)])
    assert operations(graph) == [
        "aten.rand_like.default",
        "aten.clone.default",
        "aten.select.int",
        "aten.zero_.default",
    ]
    x = torch.ones(3, 3)
    torch.manual_seed(0)
    (y,) = graph([x])
    after = torch.rand(())
    assert y.sum() == 6
    torch.manual_seed(0)
    torch.rand(3, 3)
    assert after == torch.rand(())


def test_views_of_an_open_size_are_left_out_too() -> None:
    graph = trace(
        lambda x: (x.view(x.shape[0], 3) + x.view(-1, 1, 3)[:, 0],),
        [torch.rand(4, 3)],
        [(True, False)],
    )
    assert operations(graph) == ["aten.add.Tensor"]
    x = torch.rand(5, 3)
    assert torch.equal(graph([x])[0], 2 * x)


def test_views_of_views_become_one() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        swapped = x.view(1, 4, 1, 3).transpose(0, 2)
        return swapped.view(12) + 1, swapped.squeeze(0).squeeze(1) * 2, x.t().unsqueeze(0)[0] * 3

    x = torch.rand(4, 3)
    graph = trace(function, [x], [(False, False)])
    assert operations(graph) == [
        "aten.view.default",
        "aten.add.Tensor",
        "aten.mul.Tensor",
        "aten.t.default",
        "aten.mul.Tensor",
    ]
    for ours, expected in zip(graph([x]), function(x), strict=True):
        assert torch.equal(ours, expected)


def test_a_view_that_moves_elements_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        square = x.view(3, 1, 3)
        return square.transpose(0, 2).view(3, 3) + 1, x.view(9)[3:6].view(3, 1) + 1

    x = torch.rand(3, 3)
    graph = trace(function, [x], [(False, False)])
    for ours, expected in zip(graph([x]), function(x), strict=True):
        assert torch.equal(ours, expected)


def test_columns_of_a_product_that_nobody_reads_are_not_computed() -> None:
    a, b = torch.rand(4, 5), torch.rand(5, 30)
    graph = trace(lambda a, b: ((a @ b)[:, 10:12] + 1,), [a, b], [(False, False)] * 2)
    (product,) = [n for n in graph.module.graph.nodes if n.target is torch.ops.aten.mm.default]
    assert product.args[1].target is torch.ops.aten.slice.Tensor
    torch.testing.assert_close(graph([a, b])[0], (a @ b)[:, 10:12] + 1)

    def read_twice(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        product = a @ b
        return product[:, 1:], product[1:, :], product.sum()

    whole = trace(read_twice, [a, b], [(False, False)] * 2)
    assert operations(whole).count("aten.mm.default") == 1
    for ours, expected in zip(whole([a, b]), read_twice(a, b), strict=True):
        assert torch.equal(ours, expected)


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


def offset(x: Tensor) -> tuple[Tensor, ...]:
    steps = torch.arange(x.shape[0], dtype=x.dtype)[:, None] / 2
    return (x * steps - torch.full_like(x, 3.0).neg(),)


def test_what_depends_on_no_input_is_computed_once() -> None:
    graph = trace(offset, [torch.rand(4, 3)], [(False, False)])
    x = torch.rand(4, 3)
    assert torch.equal(graph([x])[0], offset(x)[0])
    assert called(graph, x) == ["aten.mul.Tensor", "aten.sub.Tensor"]


def test_what_depends_on_an_open_size_is_not() -> None:
    graph = trace(offset, [torch.rand(4, 3)], [(True, False)])
    x = torch.rand(7, 3)
    assert graph.admits([x])
    assert torch.equal(graph([x])[0], offset(x)[0])


def test_what_is_returned_or_written_into_is_made_at_every_call() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros(3)
        total.view(3, 1)[0].add_(x[0])
        return torch.ones(2, 3)[:1], total * x

    graph = trace(function, [torch.rand(3)], [(False,)])
    x = torch.rand(3)
    for _ in range(2):
        returned, product = graph([x])
        assert torch.equal(returned, torch.ones(1, 3))
        assert torch.equal(product, torch.tensor([x[0], 0.0, 0.0]) * x)
        returned.zero_()


def test_a_large_constant_is_not_kept() -> None:
    graph = trace(lambda x: (x + torch.ones(50, 50),), [torch.rand(50, 50)], [(False, False)])
    folded = {
        size: "aten.ones.default" not in str(fold_constants(graph.module, max_bytes=size).graph)
        for size in (8 * 50 * 50, 8 * 50 * 50 - 1)
    }
    assert list(folded.values()) == [True, False]


def test_draws_are_no_constants() -> None:
    graph = trace(lambda x: (x * torch.rand(3).exp(),), [torch.rand(3)], [(False,)])
    x = torch.rand(3)
    assert not torch.equal(graph([x])[0], graph([x])[0])

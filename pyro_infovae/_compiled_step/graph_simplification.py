# SPDX-License-Identifier: MIT
"""Fewer operations in a graph that is no longer differentiated, with the same results."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
_VIEWS = (
    _aten.alias.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.permute.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.squeeze.dim,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
)


def simplify(module: GraphModule) -> None:
    """Leave out views of views, columns that nobody reads, and operations that nobody reads.

    What draws random numbers or writes into a tensor stays, so that the stream of random numbers
    is that of the original.

    Args:
        module: the graph, which is changed.
    """
    for node in list(module.graph.nodes):
        if (shorter := _same_tensor(node) or _one_view(node)) is not None:
            node.replace_all_uses_with(shorter)
    # Views that nobody reads any more would count as readers of what they view.
    module.graph.eliminate_dead_code(has_effect)
    for node in list(module.graph.nodes):
        if _is_columns_of_product(node):
            node.replace_all_uses_with(_product_of_columns(node))
    module.graph.eliminate_dead_code(has_effect)
    module.recompile()


def _same_tensor(node: Node) -> Node | None:
    """The first tensor that an operation is another view of, in the same layout."""
    same = [source for source in _viewed(node) if _layout(source) == _layout(node)]
    return same[-1] if same else None


def _one_view(node: Node) -> Node | None:
    """A single view in the place of several, where these only say how all elements are arranged."""
    *between, first = _viewed(node) or (None,)
    if not between or first is None:
        return None
    before, after = first.meta["val"], node.meta["val"]
    if not (_is_plain(before) and _is_plain(after) and before.numel() == after.numel()):
        return None
    with node.graph.inserting_before(node):
        view = node.graph.call_function(_aten.view.default, (first, list(after.shape)))
    view.meta = dict(node.meta)
    return view


def _viewed(node: Node) -> tuple[Node, ...]:
    """The tensors that an operation is a view of, the nearest first."""

    def sources() -> Iterator[Node]:
        current = node
        while current.op == "call_function" and current.target in _VIEWS:
            source = current.args[0]
            if not isinstance(source, Node) or "val" not in source.meta:
                return
            yield source
            current = source

    return tuple(sources())


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor has fixed sizes, and its elements lie one after the other."""
    return all(isinstance(size, int) for size in value.shape) and value.is_contiguous()


def _layout(node: Node) -> tuple[object, ...]:
    value: Tensor = node.meta["val"]
    # How far apart places are along a dimension with one of them says nothing.
    strides = [
        0 if isinstance(size, int) and size == 1 else stride
        for size, stride in zip(value.shape, value.stride(), strict=True)
    ]
    sizes = (*value.shape, *strides, value.storage_offset())
    # Symbolic sizes are compared as they are written: to compare them would be to settle them.
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def _is_columns_of_product(node: Node) -> bool:
    """Whether a node is all that is read of a matrix product, and not the whole of it."""
    if node.op != "call_function" or node.target is not _aten.slice.Tensor or len(node.args) != 4:
        return False
    product, dim, *_ = node.args
    return (
        isinstance(product, Node)
        and product.target is _aten.mm.default
        and len(product.users) == 1
        and dim in (1, -1)
    )


def _product_of_columns(node: Node) -> Node:
    product, _, start, stop = node.args
    assert isinstance(product, Node)
    left, right = product.args
    graph = node.graph
    with graph.inserting_before(node):
        columns = graph.call_function(_aten.slice.Tensor, (right, 1, start, stop))
        return graph.call_function(_aten.mm.default, (left, columns))


def has_effect(node: Node) -> bool:
    """Whether an operation does more than return: it draws random numbers, or writes."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or (schema is not None and schema.is_mutable)

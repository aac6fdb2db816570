"""Fewer operations in a graph that is no longer differentiated, with the same results."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
_VIEWS = (_aten.alias.default, _aten.detach.default, _aten.expand.default, _aten.view.default)


def simplify(module: GraphModule) -> None:
    """Leave out views that change nothing, and operations that nobody reads.

    What draws random numbers or writes into a tensor stays, so that the stream of random numbers
    is that of the original.

    Args:
        module: the graph, which is changed.
    """
    for node in list(module.graph.nodes):
        if (same := _same_tensor(node)) is not None:
            node.replace_all_uses_with(same)
    module.graph.eliminate_dead_code(_has_effect)
    module.recompile()


def _same_tensor(node: Node) -> Node | None:
    """The tensor that an operation is another view of, in the same layout."""
    if node.op != "call_function" or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, Node):
        return None
    if node.target is _aten.t.default and source.target is _aten.t.default:
        twice = source.args[0]
        return twice if isinstance(twice, Node) else None
    if node.target not in _VIEWS or "val" not in source.meta:
        return None
    return source if _layout(node) == _layout(source) else None


def _layout(node: Node) -> tuple[object, ...]:
    value: Tensor = node.meta["val"]
    sizes = (*value.shape, *value.stride(), value.storage_offset())
    # Symbolic sizes are compared as they are written: to compare them would be to settle them.
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def _has_effect(node: Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or (schema is not None and schema.is_mutable)

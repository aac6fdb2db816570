# SPDX-License-Identifier: MIT
"""What is the same at every call of a graph, computed once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pyro_infovae._compiled_step.graph_simplification import has_effect

_aten = torch.ops.aten
_FACTORIES = (
    _aten.arange.default,
    _aten.arange.start,
    _aten.arange.start_step,
    _aten.eye.default,
    _aten.full.default,
    _aten.ones.default,
    _aten.scalar_tensor.default,
    _aten.zeros.default,
)
# Of a tensor they look at no more than its sizes, dtype and device.
_LIKE_ANOTHER = (
    _aten.full_like.default,
    _aten.new_full.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.ones_like.default,
    _aten.zeros_like.default,
)
MAX_BYTES = 2**20


def fold_constants(module: GraphModule, *, max_bytes: int = MAX_BYTES) -> GraphModule:
    """A copy of a graph that keeps what depends on none of its inputs.

    What is returned or written into is made at every call all the same, for its memory is not the
    graph's to keep.

    Args:
        module: the graph.
        max_bytes: the largest constant to keep.
    """
    folded = GraphModule(module, copy.deepcopy(module.graph))
    constants = _constants(folded, max_bytes)
    for i, (node, value) in enumerate(constants.items()):
        if all(user in constants for user in node.users):
            continue
        name = f"_constant_{i}"
        folded.register_buffer(name, value)
        with folded.graph.inserting_before(node):
            kept = folded.graph.get_attr(name)
        kept.meta = dict(node.meta)
        node.replace_all_uses_with(kept)
    folded.graph.eliminate_dead_code(has_effect)
    folded.recompile()
    return folded


def _constants(module: GraphModule, max_bytes: int) -> dict[Node, Tensor]:
    """The constants among the nodes, with their values."""
    not_own = {_storage(node) for node in _returned_or_written(module)}
    values: dict[Node, Tensor] = {}
    with torch.no_grad():
        for node in module.graph.nodes:
            if (
                _depends_on_no_input(node, values)
                and _has_fixed_sizes(node)
                and node.meta["val"].untyped_storage().nbytes() <= max_bytes
                and _storage(node) not in not_own
            ):
                values[node] = _computed(node, values)
    return values


def _depends_on_no_input(node: Node, values: Mapping[Node, Tensor]) -> bool:
    if not isinstance(node.target, OpOverload) or has_effect(node):
        return False
    sources = [source for source in node.all_input_nodes if source not in values]
    if node.target in _LIKE_ANOTHER:
        return sources in ([], [node.args[0]])
    return not sources and (bool(node.all_input_nodes) or node.target in _FACTORIES)


def _has_fixed_sizes(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and all(
        isinstance(size, int) for size in (*value.shape, *value.stride(), value.storage_offset())
    )


def _computed(node: Node, values: Mapping[Node, Tensor]) -> Tensor:
    result = node.meta["val"]

    def real(source: Node) -> Tensor:
        if source in values:
            return values[source]
        return torch.empty_strided(
            result.shape, result.stride(), dtype=result.dtype, device=result.device
        )

    assert isinstance(node.target, OpOverload)
    args, kwargs = map_arg((node.args, node.kwargs), real)
    value: Tensor = node.target(*args, **kwargs)
    return value


def _returned_or_written(module: GraphModule) -> list[Node]:
    return [
        source
        for node in module.graph.nodes
        if node.op == "output" or (node.op == "call_function" and has_effect(node))
        for source in node.all_input_nodes
        if isinstance(source.meta.get("val"), Tensor)
    ]


def _storage(node: Node) -> Any:
    return node.meta["val"].untyped_storage()._cdata

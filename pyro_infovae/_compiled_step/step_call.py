# SPDX-License-Identifier: MIT
"""What a step is called with: tensors that may change, and everything else, which may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)
"""Types of values that cannot change without being unequal."""


@dataclass(frozen=True)
class Call:
    """The arguments of a step, taken apart.

    Attributes:
        tensors: the tensors among them, contiguous.
        others: the other values.
        kinds: the rank, dtype and device of every tensor.
        structure: how they are nested.
        is_tensor: which of them, in order, are tensors.
        modes: torch's modes that say of which dtype results are.
    """

    tensors: tuple[Tensor, ...]
    others: tuple[Any, ...]
    kinds: tuple[tuple[int, torch.dtype, torch.device], ...]
    structure: pytree.TreeSpec
    is_tensor: tuple[bool, ...]
    modes: tuple[Any, ...]

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of the tensors."""
        return tuple(tensor.shape for tensor in self.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors in the place of these."""
        replaced, kept = iter(tensors), iter(self.others)
        leaves = [next(replaced if is_tensor else kept) for is_tensor in self.is_tensor]
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(
            leaves, self.structure
        )
        return arguments

    def change(self, other: Call) -> str | None:
        """How another call differs from this one, beside the shapes; None where it does not."""
        if self.structure != other.structure or self.is_tensor != other.is_tensor:
            return "the arguments are others"
        if self.kinds != other.kinds:
            return "the arguments' ranks, dtypes or devices are others"
        if self.modes != other.modes:
            return "the default dtype or autocast is another"
        for before, after in zip(self.others, other.others, strict=True):
            if type(before) is not type(after) or before != after:
                return f"an argument was {before!r} and is {after!r}"
        return None


def take_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Take the arguments of a step apart.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.

    Raises:
        TypeError: for an argument that may change without notice.
        ValueError: for a tensor that requires a gradient.
    """
    leaves, structure = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    for other in others:
        if not isinstance(other, (*PLAIN, nn.Module)):
            raise TypeError(
                "Expected arguments of tensors, numbers, strings and modules; got "
                f"{type(other).__name__}, whose content may change: pass torch.as_tensor of it"
            )
    for tensor in tensors:
        if tensor.requires_grad:
            raise ValueError(
                "Expected arguments that require no gradient; got a tensor of shape "
                f"{tuple(tensor.shape)} that does: declare it with pyro.param, or detach it"
            )
    return Call(
        tensors=tuple(tensor.contiguous() for tensor in tensors),
        others=tuple(others),
        kinds=tuple((tensor.dim(), tensor.dtype, tensor.device) for tensor in tensors),
        structure=structure,
        is_tensor=tuple(isinstance(leaf, Tensor) for leaf in leaves),
        modes=(
            torch.get_default_dtype(),
            *(
                torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
                for kind in ("cpu", "cuda")
            ),
        ),
    )

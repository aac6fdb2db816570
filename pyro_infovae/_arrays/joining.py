# SPDX-License-Identifier: MIT
"""Tensors put together, which costs nothing where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["joined"]


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other; a single one is not copied.

    Args:
        parts: one tensor or more.
        dim: the dimension along which they lie.

    Example:
        >>> joined([torch.zeros(2, 3), torch.ones(2, 1)], dim=-1).shape
        torch.Size([2, 4])
    """
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)

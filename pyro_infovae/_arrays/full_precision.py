# SPDX-License-Identifier: MIT
"""Arithmetic in full precision, whatever the precision of the networks around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor

from pyro_infovae._core.arrays import raised

__all__ = ["autocast_of_now", "full_precision", "raised", "without_autocast"]


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Suspend autocast, and raise the tensors.

    For what is small and comes out of a difference of large numbers, as a squared distance does
    out of norms and products: in bfloat16 nothing would be left of it.

    Args:
        *tensors: what is computed with.

    Example:
        >>> x = torch.tensor([[100.0], [101.0]])
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision(x) as (x,):
        ...     x @ x.T
        tensor([[10000., 10100.],
                [10100., 10201.]])
    """
    with without_autocast(tensors):
        yield tuple(raised(tensor) for tensor in tensors)


def without_autocast(tensors: Iterable[Tensor]) -> AbstractContextManager[object]:
    """No autocast on the devices of the tensors.

    Args:
        tensors: what is computed with.
    """
    stack = ExitStack()
    for kind in _kinds(tensors):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def autocast_of_now(
    tensors: Iterable[Tensor],
) -> Callable[[], AbstractContextManager[object]]:
    """Autocast as it is now on the devices of the tensors, and on the CPU, to be entered later.

    Its cache is left out: it keeps what it has cast, graph and all, from one call to the next.

    Args:
        tensors: what is computed with.
    """
    states = {
        kind: (torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        for kind in {"cpu", *_kinds(tensors)}
    }

    def enter() -> AbstractContextManager[object]:
        stack = ExitStack()
        for kind, (dtype, enabled) in states.items():
            if enabled or torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        return stack

    return enter


def _kinds(tensors: Iterable[Tensor]) -> set[str]:
    """The types of devices that have autocast."""
    kinds = {tensor.device.type for tensor in tensors}
    return {kind for kind in kinds if torch.amp.is_autocast_available(kind)}

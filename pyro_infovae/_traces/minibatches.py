# SPDX-License-Identifier: MIT
"""The rows that plates index data by: others in their place, and whether they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_infovae._core.surrogate import Surrogate

Subsample: TypeAlias = Callable[..., tuple[int, int, Any]]

_FACTS = (int, str, torch.Size, torch.device, torch.dtype)


@contextmanager
def of_rows(surrogate: Surrogate) -> Iterator[None]:
    """Plates that a program makes are of these rows, however many it asks for."""

    def wrapped(original: Subsample, name: str, size: Any, *args: Any) -> tuple[int, int, Any]:
        _, _, use_cuda, device = args
        if name != surrogate.plate:
            return original(name, size, *args)
        rows = torch.tensor(surrogate.rows, device=device)
        return original(name, size, None, rows, use_cuda, device)

    with _subsampling(wrapped):
        yield


@contextmanager
def watched(used: set[str]) -> Iterator[None]:
    """Note the names of the plates of whose indices a program makes use.

    Args:
        used: takes them.
    """
    watching = _Watching(used)

    def wrapped(original: Subsample, name: str, size: Any, *args: Any) -> tuple[int, int, Any]:
        full_size, num, indices = original(name, size, *args)
        if indices is not None:
            # The program may hold its own copy, which is not of the plate.
            indices = torch.as_tensor(indices).clone()
            watching.indices.append((name, indices))
        return full_size, num, indices

    with _subsampling(wrapped), watching:
        yield


class _Watching(TorchFunctionMode):
    def __init__(self, used: set[str]) -> None:
        super().__init__()
        self.used = used
        self.indices: list[tuple[str, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, _FACTS):
            for leaf in tree_leaves((args, kwargs)):
                self.used.update(name for name, indices in self.indices if leaf is indices)
        return result


@contextmanager
def _subsampling(wrapped: Callable[..., tuple[int, int, Any]]) -> Iterator[None]:
    """Plates find their indices in another way; Pyro has no handler for their number."""
    original = SubsampleMessenger._subsample

    def subsample(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Any = None,
        use_cuda: bool | None = None,
        device: str | None = None,
    ) -> tuple[int, int, Any]:
        return wrapped(original, name, size, subsample_size, subsample, use_cuda, device)

    SubsampleMessenger._subsample = staticmethod(subsample)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)

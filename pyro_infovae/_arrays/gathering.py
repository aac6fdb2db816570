# SPDX-License-Identifier: MIT
r"""Rows of all ranks of a process group, and their gradient.

What is computed from gathered rows alone, a penalty P, is the same on every rank. Each of W ranks
differentiates it in its own rows :math:`z_r` only, times W, so that the mean over the ranks of the
gradients in the parameters,

.. math::
    \frac1W \sum_r W \frac{\partial P}{\partial z_r} \frac{\partial z_r}{\partial \theta},

is the gradient of P, and nothing is communicated in backward. The gradient in a parameter that P
reads beside the rows, a critic's, is whole on every rank, and so is its mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from pyro_infovae._arrays.random_state import RandomState

T = TypeVar("T")


def world_size() -> int:
    """The number of ranks of the default process group; 1 where there is none.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def exchange(value: T) -> list[T]:
    """A picklable value of every rank, in order.

    Example:
        >>> exchange("of this rank")
        ['of this rank']
    """
    values = [value]
    if world_size() > 1:
        values = values * world_size()
        dist.all_gather_object(values, value)
    return values


def gather_rows(
    rows: Shaped[Tensor, " rows *event"], batch_size: int
) -> Shaped[Tensor, " ranks*rows *event"]:
    r"""The rows of all ranks, as those of one minibatch that holds the data of all.

    Args:
        rows: the rows of this rank, as many as on every other, row r of datum r modulo
            ``batch_size``.
        batch_size: the data of this rank.

    Returns:
        The rows, row r of datum r modulo ranks × ``batch_size``. Backward gives this rank's rows
        their gradient times the number of ranks, and those of other ranks none.

    Example:
        >>> gather_rows(torch.tensor([[1.0], [2.0]]), 2)
        tensor([[1.],
                [2.]])
    """
    ranks = world_size()
    if ranks == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    by_datum = gathered.unflatten(1, (-1, batch_size)).transpose(0, 1)
    return by_datum.reshape(ranks * len(rows), *rows.shape[1:])


_OWN_DRAWS: ContextVar[RandomState | None] = ContextVar("own_draws", default=None)


@contextmanager
def same_draws() -> Iterator[None]:
    """The same random numbers on every rank; afterwards each goes on with its own."""
    if world_size() == 1:
        yield
        return
    own = RandomState.now()  # which the seed takes nothing from, as where there is one process
    seed = exchange(int(torch.empty((), dtype=torch.int64).random_()))[0]
    token = _OWN_DRAWS.set(own)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        (_OWN_DRAWS.get() or own).restore()
        _OWN_DRAWS.reset(token)


@contextmanager
def own_draws() -> Iterator[None]:
    """Within :func:`same_draws`, this rank's own random numbers for a while."""
    own = _OWN_DRAWS.get()
    if own is None:
        yield
        return
    shared = RandomState.now()
    own.restore()
    try:
        yield
    finally:
        _OWN_DRAWS.set(RandomState.now())
        shared.restore()


class _Gather(torch.autograd.Function):
    """The tensors of all ranks, stacked."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        own = own.contiguous()
        stacked = own.new_empty(world_size(), *own.shape)
        # As bytes, for not every backend knows every dtype.
        dist.all_gather(
            [part.reshape(-1).view(torch.uint8) for part in stacked],
            own.reshape(-1).view(torch.uint8),
        )
        return stacked

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return world_size() * gradient[dist.get_rank()]

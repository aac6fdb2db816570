"""Ten thousand replayed steps hold no more memory than two thousand."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae.compile import CompiledSVI


class MallInfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns: how much has been allocated and not freed."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MALLINFO is None, reason="asks glibc 2.33"),
]


def allocated() -> tuple[int, int]:
    """Blocks of memory in Python, and bytes below it."""
    assert MALLINFO is not None
    MALLINFO.restype = MallInfo
    gc.collect()
    info = MALLINFO()
    return sys.getallocatedblocks(), info.uordblks + info.hblkhd


def growth(step: Callable[[Tensor], object], *, first: int, last: int) -> tuple[int, int]:
    """By how much what is allocated grows from one step to another."""
    x = torch.linspace(-1.0, 1.0, 3)
    for _ in range(first):
        step(x)
    blocks, size = allocated()
    for _ in range(last - first):
        step(x)
    more_blocks, more_size = allocated()
    return more_blocks - blocks, more_size - size


def compiled() -> CompiledSVI:
    """Steps of a model of one latent."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))

    fused = partial(torch.optim.Adam, lr=1e-3, fused=True)
    return CompiledSVI(model, guide, fused, Trace_ELBO())


def test_ten_thousand_steps_leak_nothing() -> None:
    blocks, size = growth(compiled().step, first=2_000, last=10_000)
    assert blocks < 800
    assert size < 8_000 * 8


@pytest.mark.parametrize("in_python", [True, False])
def test_what_leaks_is_found(in_python: bool) -> None:
    svi, objects, memory = compiled(), [], torch.zeros(0)

    def leaking(x: Tensor) -> None:
        svi.step(x)
        if in_python:
            objects.append(x + 1)
        else:
            memory.resize_(memory.numel() + 3)

    blocks, size = growth(leaking, first=200, last=1_200)
    assert (blocks >= 1_000) == in_python
    assert size > 1_000 * 8

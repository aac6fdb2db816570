"""Trains with noise that does not depend on the number of processes.

Run as `lightning_worker.py FILE` it does so in float64 with two processes, of which the first
writes the losses to the file.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

pytest.importorskip("lightning")
import lightning_module


def train(*, devices: int) -> list[float]:
    """Losses of two epochs."""
    options = Namespace(objective="mmd", epochs=2, seed=0, resume=False)
    with (
        mock.patch("torch.distributions.normal._standard_normal", _share_of_noise),
        mock.patch("lightning_module.noise_seed", lambda seed, *, epoch, rank: seed + epoch),
    ):
        return lightning_module.train(options, checkpoint=None, devices=devices)


def _share_of_noise(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What one process would draw for the rows of this one: every second one, where there are 2."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    return torch.randn(shape[0] * world, *shape[1:], dtype=dtype, device=device)[rank::world]


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    losses = train(devices=2)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(sys.argv[1]).write_text(json.dumps(losses))

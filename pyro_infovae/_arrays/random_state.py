# SPDX-License-Identifier: MIT
"""The state of torch's random generators, to draw the same numbers again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of the generators of the CPU and of all CUDA devices in use."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """The state at this moment."""
        in_use = torch.cuda.is_initialized()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if in_use else [])

    def restore(self) -> None:
        """Draw from that state on."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

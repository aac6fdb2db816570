# SPDX-License-Identifier: MIT
"""The ELBO of runs in which latents are enumerated, differentiable and free of the host."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import traceenum_elbo
from pyro.infer.util import Dice
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_infovae._core.integrators import with_globals


class _ZerosForTerms(Dice):
    def compute_expectation(self, costs: Any) -> Any:
        with _ZerosForMasked():
            return super().compute_expectation(costs)


class _ZerosForMasked(TorchFunctionMode):
    """Pyro is told that not all terms count, and is given zeros in the place of the others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all:
            return False
        if func is Tensor.masked_select:
            terms, mask = args
            return torch.where(mask, terms, 0.0)
        return func(*args, **(kwargs or {}))


enumerated_elbo = with_globals(traceenum_elbo._compute_dice_elbo, Dice=_ZerosForTerms)
"""That of packed traces of model and guide; terms of probability 0 are 0."""

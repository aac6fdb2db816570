# SPDX-License-Identifier: MIT
"""Pyro's enumerated ELBO with a course that does not depend on the numbers in its tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO, traceenum_elbo
from pyro.infer.util import Dice
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_infovae._arrays.rebinding import with_globals


def without_branches(objective: TraceEnum_ELBO) -> TraceEnum_ELBO:
    """A copy whose ``differentiable_loss`` can be captured.

    Pyro leaves out the terms of probability 0, if there are any; here each of them is a 0.

    Args:
        objective: the objective, which stays as it is.
    """
    captured = copy.copy(objective)
    loss = with_globals(
        TraceEnum_ELBO.differentiable_loss,
        _compute_dice_elbo=with_globals(traceenum_elbo._compute_dice_elbo, Dice=_ZerosForTerms),
        warn_if_nan=lambda *_: None,
    )
    captured.differentiable_loss = MethodType(loss, captured)
    return captured


class _ZerosForTerms(Dice):
    def compute_expectation(self, costs: Any) -> Any:
        with _ZerosForMasked():
            return super().compute_expectation(costs)


class _ZerosForMasked(TorchFunctionMode):
    """Pyro is told that not all terms count, and is given zeros in the place of the others."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.all:
            return False
        if func is Tensor.masked_select:
            terms, mask = args
            return torch.where(mask, terms, 0.0)
        return func(*args, **(kwargs or {}))

# SPDX-License-Identifier: MIT
"""The maximum mean discrepancy by random frequencies, as one node of the graph."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._arrays.pair_sums import Gradients, with_gradients
from pyro_infovae._core.features import (
    Draws,
    Frequencies,
    block_size,
    block_sums,
    centred,
)
from pyro_infovae._core.mmd import Periods, Sample, coefficients

DRAWS = Draws(
    lambda shape, like: torch.randn(shape, dtype=like.dtype, device=like.device),
    lambda shape, like: torch.rand(shape, dtype=like.dtype, device=like.device),
)


def average_features(
    frequencies: Frequencies, x: Sample, y: Sample, periods: Periods
) -> Float[Tensor, ""]:
    """The estimate, summed over blocks of frequencies with the gradient beside it."""
    inputs = (*x.rows, x.weights, *y.rows, y.weights, *coefficients(x, y, periods))
    return with_gradients(partial(_value_and_gradients, frequencies, len(x.rows), periods), inputs)


def _value_and_gradients(
    frequencies: Frequencies, split: int, periods: Periods, wanted: Sequence[bool], *inputs: Any
) -> tuple[Tensor, Gradients]:
    x, y = centred(
        Sample(inputs[:split], inputs[split]), Sample(inputs[split + 1 : -4], inputs[-4])
    )
    x_wanted, y_wanted = any(wanted[: split + 1]), any(wanted[split + 1 : -3])
    size = block_size(x, y)
    sums: list[Tensor | None] = []
    for values, weights in zip(*(part.split(size) for part in frequencies), strict=True):
        block = block_sums(
            Frequencies(values, weights), x, y, periods, inputs[-3:], (x_wanted, y_wanted)
        )
        parts = [*_flat(block.x, x), *_flat(block.y, y), *block[:3]]
        for total, part in zip(sums, parts, strict=False):
            if total is not None:
                total.add_(part)
        sums = sums or parts
    value = sum(c * s for c, s in zip(inputs[-3:], sums[-3:], strict=True))
    return value, [g if w else None for g, w in zip(sums, wanted, strict=True)]


def _flat(gradient: Sample | None, sample: Sample) -> list[Tensor | None]:
    if gradient is None:
        return [None] * (len(sample.rows) + 1)
    return [*gradient.rows, gradient.weights]

# SPDX-License-Identifier: MIT
"""What critics are made of: layers, and the scores of all pairs in blocks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_infovae._core.critics import check_encoded, flattened

Activation = type[torch.nn.Module] | Callable[[Tensor], Tensor]


class Elementwise(torch.nn.Module):
    """A function of a tensor as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(values)


def activated_layers(widths: Sequence[int], activation: Activation) -> list[torch.nn.Module]:
    """Activation and linear layer, in turn, from width to width."""
    layers: list[torch.nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers.append(activation() if isinstance(activation, type) else Elementwise(activation))
        layers.append(torch.nn.Linear(width_in, width_out))
    return layers


def encode(
    name: str,
    values: Shaped[Tensor, " rows *event"],
    width: int,
    encoder: torch.nn.Module | None,
    like: Float[Tensor, "*axes"],
) -> Float[Tensor, " rows {width}"]:
    """Rows of `width` features: what the encoder makes, or the event dims flattened."""
    if encoder is not None:
        return check_encoded(name, encoder(values), values.shape[0], width)
    return flattened(name, values, width, like)


def score_in_blocks(
    score_grid: Callable[[Tensor, Tensor], Tensor],
    x: Shaped[Tensor, " n *event"],
    z: Float[Tensor, " m features"],
    block_rows: int,
) -> Float[Tensor, " n m"]:
    """Put together score_grid of blocks of at most `block_rows` pairs, recomputed backward."""
    columns = min(z.shape[0], block_rows)
    rows = block_rows // columns
    if x.shape[0] <= rows and z.shape[0] <= columns:
        return score_grid(x, z)
    strips = [
        torch.cat([_recomputed(score_grid, strip, block) for block in torch.split(z, columns)], 1)
        for strip in torch.split(x, rows)
    ]
    return torch.cat(strips)


def _recomputed(score_grid: Callable[[Tensor, Tensor], Tensor], x: Tensor, z: Tensor) -> Tensor:
    scores: Tensor = checkpoint(score_grid, x, z, use_reentrant=False)
    return scores

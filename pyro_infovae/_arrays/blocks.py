# SPDX-License-Identifier: MIT
"""Scores of all pairs in blocks, so that memory stays bounded by one block."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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

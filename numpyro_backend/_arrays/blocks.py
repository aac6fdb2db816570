# SPDX-License-Identifier: MIT
"""Scores of all pairs in blocks, so that memory stays bounded by one block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def score_in_blocks(
    score_grid: Callable[[Array, Array], Array],
    x: Shaped[Array, " n *event"],
    z: Float[Array, " m features"],
    block_rows: int,
) -> Float[Array, " n m"]:
    """Put together score_grid of blocks of at most `block_rows` pairs, recomputed backward."""
    n, m = x.shape[0], z.shape[0]
    columns = min(m, block_rows)
    rows = block_rows // columns
    if n <= rows and m <= columns:
        return score_grid(x, z)
    x_blocks, z_blocks = _blocks(x, rows), _blocks(z, columns)
    strips, width = x_blocks.shape[0], z_blocks.shape[0]

    @jax.checkpoint
    def score_block(index: Array) -> Array:
        return score_grid(x_blocks[index // width], z_blocks[index % width])

    scores = jax.lax.map(score_block, jnp.arange(strips * width))
    grid = scores.reshape(strips, width, rows, columns).swapaxes(1, 2)
    return grid.reshape(strips * rows, width * columns)[:n, :m]


def _blocks(values: Array, rows: int) -> Array:
    """Blocks of equally many rows, the last one filled up with copies of the last row."""
    missing = -values.shape[0] % rows
    filled = jnp.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    return filled.reshape(-1, rows, *values.shape[1:])

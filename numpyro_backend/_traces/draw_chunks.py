# SPDX-License-Identifier: MIT
"""How many draws go into one run."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

NUMBERS_PER_RUN = 2**23


def in_chunks(
    rng_keys: Key[Array, " samples"], chunk_size: int | None, draw_size: int
) -> Key[Array, "chunks size"]:
    """The keys of each run, filled up from the start: chunks of one size are compiled once.

    Args:
        rng_keys: a key for every draw.
        chunk_size: draws per run at most, or None for so many that no site holds more than 2²³
            numbers.
        draw_size: the numbers in the largest site of a draw.

    Example:
        >>> import jax
        >>> in_chunks(jax.random.split(jax.random.key(0), 10), 4, 1).shape
        (3, 4)
    """
    num_samples = len(rng_keys)
    chunk_size = chunk_size or max(1, NUMBERS_PER_RUN // draw_size)
    num_chunks = math.ceil(num_samples / chunk_size)
    size = math.ceil(num_samples / num_chunks)
    return rng_keys[jnp.arange(num_chunks * size).reshape(num_chunks, size) % num_samples]

# SPDX-License-Identifier: MIT
"""How many draws go into one run."""

from __future__ import annotations

NUMBERS_PER_RUN = 2**23


def chunk_sizes(num_samples: int, chunk_size: int | None, draw_size: int) -> list[int]:
    """The draws of each run.

    Args:
        num_samples: the draws of all runs.
        chunk_size: draws per run, or None for so many that no site holds more than 2²³ numbers.
        draw_size: the numbers in the largest site of a draw.

    Example:
        >>> chunk_sizes(10, 4, 1)
        [4, 4, 2]
    """
    size = chunk_size or max(1, NUMBERS_PER_RUN // draw_size)
    return [min(size, num_samples - start) for start in range(0, num_samples, size)]

"""Training steps, and how long they take."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BLOCKS = 20


def take_steps(step: Callable[[Any], Any], batches: Sequence[Any]) -> float:
    """Call `step` on every batch; the median seconds of a step, over blocks of them.

    Args:
        step: Returns the loss, which is waited for at the end of each block alone.
        batches: What each step gets. The first steps, which compile, are left out of the median by
            its being one.
    """
    seconds = []
    for block in np.array_split(np.asarray(batches), min(BLOCKS, len(batches))):
        start = time.perf_counter()
        for batch in block:
            loss = step(batch)
        float(loss)
        seconds.append((time.perf_counter() - start) / len(block))
    return statistics.median(seconds)

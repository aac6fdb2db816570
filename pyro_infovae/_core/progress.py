# SPDX-License-Identifier: MIT
"""A progress bar where tqdm is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def with_progress(steps: Iterable[T], *, total: int, label: str) -> Iterable[T]:
    """The steps, with a bar at the terminal where tqdm is installed."""
    try:
        tqdm = importlib.import_module("tqdm")
    except ImportError:
        return steps
    bar: Iterable[T] = tqdm.tqdm(steps, desc=label, total=total, leave=False, disable=None)
    return bar

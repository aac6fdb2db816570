# SPDX-License-Identifier: MIT
"""Programs that run under a handler of their framework, by which their sites are recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

Program: TypeAlias = Callable[..., Any]
"""A model or a guide."""


@dataclass(frozen=True)
class Recorded:
    """A program under a recording handler; ``fn`` is the program without it."""

    fn: Program
    handler: Callable[[], AbstractContextManager[Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; its sites are recorded."""
        with self.handler():
            return self.fn(*args, **kwargs)


def unrecorded(program: Program) -> Program:
    """The user's own program: what a run that no objective scores has to call."""
    while isinstance(program, Recorded):
        program = program.fn
    return program


def recorded_like(program: Program, other: Program) -> Program:
    """The other program under the recording handlers of the first."""
    if not isinstance(program, Recorded):
        return other
    return Recorded(recorded_like(program.fn, other), program.handler)

# SPDX-License-Identifier: MIT
"""Programs that run under a handler of their framework, by which their sites are recorded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Program: TypeAlias = Callable[..., Any]
"""A model or a guide."""


@dataclass(frozen=True)
class RecordedProgram(ABC):
    """A program under a recording handler; ``fn`` is the program without it."""

    fn: Program
    handler: Callable[[], AbstractContextManager[Any]]

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; its sites are recorded."""


def unrecorded(program: Program) -> Program:
    """The user's own program: what a run that no objective scores has to call."""
    while isinstance(program, RecordedProgram):
        program = program.fn
    return program


def recorded_like(program: Program, other: Program) -> Program:
    """The other program under the recording handlers of the first."""
    if not isinstance(program, RecordedProgram):
        return other
    return replace(program, fn=recorded_like(program.fn, other))

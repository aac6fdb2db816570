"""The table *What works with what* of docs/, written from what the programs are expected to do.

Run ``python -m tests.wild.programs.table`` after a change of theirs.
"""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

from tests.wild.programs import autoencoders, enumerated, in_numpyro, regressions, sequences
from tests.wild.programs.objectives import OBJECTIVES, Objective
from tests.wild.programs.program import Program, Refused

PROGRAMS = [
    *autoencoders.PROGRAMS,
    *sequences.PROGRAMS,
    *enumerated.PROGRAMS,
    *regressions.PROGRAMS,
    *in_numpyro.PROGRAMS,
]
PATH = Path(__file__).parents[3] / "docs" / "what_works" / "table.csv"


def table() -> str:
    """A row per program, a column per objective."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"`{objective.name}`" for objective in OBJECTIVES]
    writer.writerow(["program", "written after", "half", *names])
    for program in PROGRAMS:
        cells = [cell(program, objective) for objective in OBJECTIVES]
        writer.writerow([program.name, program.like, program.half, *cells])
    return file.getvalue()


def cell(program: Program, objective: Objective) -> str:
    """What an objective makes of a program: works, works with some settings, or is refused."""
    outcome = objective.outcome(program)
    if isinstance(outcome, Refused):
        return f"refused: {outcome.why}"
    settings = {name: shown(value) for name, value in outcome.settings.items()}
    if program.needs_base and objective.takes_base:
        settings["base"] = f"{class_of(program.stock).__name__}(...)"
    if not settings:
        return "works"
    return "works with " + ", ".join(f"`{name}={value}`" for name, value in settings.items())


def class_of(make: Any) -> Any:
    """The class that a factory makes an object of."""
    return make.func if isinstance(make, partial) else make


def shown(value: Any) -> str:
    return "..." if callable(value) else repr(value)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(table(), encoding="utf-8")

"""What a benchmark found, kept as JSON; and the page of all of them, which is made from these."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measuring import Call, Estimate, Quartiles

Cell = str | int | float | Quartiles | Estimate
Row = dict[str, Cell]

BENCHMARKS = (
    "exact_evidence",
    "annealed_flow",
    "digits_flow",
    "flow_harm",
    "compiled_step",
    "numpyro_step",
    "mmd_weights",
    "mmd_memory",
    "hamiltonian_cost",
    "mmd_gradient_variance",
    "mmd_features",
    "mutual_information",
    "gpu",
)
"""The modules, in the order of the page."""

NEED_A_GPU = ("gpu",)
"""Those that run only where they are asked for."""

FOLDER = Path(__file__).parent
INTRODUCTION = """# Benchmarks

```bash
python -m benchmarks                 # all of them
python -m benchmarks compiled_step   # some
python -m benchmarks gpu             # on a machine with a CUDA device, which the others do not need
```

measures, keeps what was measured in `results/`, and writes this page from it. Each part runs in a
process of its own with one thread on one core. Contenders take turns, round by round; a ratio is
taken within each round: *median (lower to upper quartile)*. *a ± b* is a mean with its standard
error, where nothing else is said.
"""


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        title: what was measured.
        method: how.
        packages: the distributions whose versions matter.
        tables: rows of cells by the name of their column, all rows of a table alike.
    """

    title: str
    method: str
    packages: Sequence[str]
    tables: Sequence[Sequence[Row]]


def measured(name: str, call: Call) -> Report:
    """Run a benchmark in this process, and in others where that matters."""
    report: Report = importlib.import_module(f"benchmarks.{name}").measure(call)
    return report


def save(name: str, report: Report, *, minutes: float, folder: Path = FOLDER) -> None:
    """Keep a report, with the machine, the versions and the date."""
    kept = {
        **asdict(report),
        "packages": {package: metadata.version(package) for package in report.packages},
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "minutes": round(minutes, 1),
    }
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(name: str, *, folder: Path = FOLDER) -> dict[str, Any] | None:
    """What was kept of a benchmark; None if it has not run yet."""
    path = folder / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def page(*, folder: Path = FOLDER) -> str:
    """The page of all benchmarks that have run."""
    kept = {name: load(name, folder=folder) for name in BENCHMARKS}
    sections = [section(name, report) for name, report in kept.items() if report is not None]
    return "\n".join([INTRODUCTION, *sections])


def section(name: str, kept: dict[str, Any]) -> str:
    """A benchmark as Markdown, between comments that others can quote it by."""
    versions = ", ".join(f"{package} {version}" for package, version in kept["packages"].items())
    provenance = (
        f"`python -m benchmarks {name}`: {kept['minutes']} minutes on {kept['machine']};"
        f" {kept['date']}; Python {kept['python']}, {versions}."
    )
    body = [kept["method"], *map(_table, kept["tables"]), provenance]
    comments = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return "\n\n".join([f"## {kept['title']}", comments[0], *body, comments[1]]) + "\n"


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[c]) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    """A cell: numbers with three digits, and a mean with as many decimals as its error."""
    if isinstance(value, dict) and "median" in value:
        low, median, high = (_number(value[key]) for key in ("low", "median", "high"))
        return f"{median} ({low} to {high})"
    if isinstance(value, dict):
        decimals = _decimals(value["error"], digits=2)
        return f"{value['mean']:.{decimals}f} ± {value['error']:.{decimals}f}"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.{_decimals(value, digits=3)}f}"


def _decimals(value: float, *, digits: int) -> int:
    """How many decimals show a number with that many digits."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)

"""What a reproduction found: tables and figures of both backends, and how each was run."""

import datetime
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reproduction.options import BACKENDS, Options

PACKAGES = {
    "pyro": ("pyro-infovae", "torch", "pyro-ppl"),
    "numpyro": ("pyro-infovae", "jax", "numpyro"),
}
MADE_WITH = "made_with.csv"


class Results:
    """The files of a folder, where each backend's rows stand beside those of the other.

    Rows of the other backend are kept if its run had the same effort.

    Args:
        name: The script's, without its ending.
        options: What was asked for.
        also_used: Distributions whose versions matter too.
    """

    def __init__(self, name: str, options: Options, also_used: Sequence[str] = ()) -> None:
        self.folder, self.backend = options.out, options.backend
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MADE_WITH
        made = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["backend", "command"])
        same_effort = made["command"].str.contains(f"--{options.effort} ", regex=False)
        made = made[same_effort & (made["backend"] != options.backend)]
        self.others = set(made["backend"])
        _sorted([made, pd.DataFrame([provenance(name, options, also_used)])]).to_csv(
            path, index=False
        )

    def table(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Write `NAME.csv`, and return it as `read` does.

        Args:
            name: Of the file, without its ending.
            rows: This backend's, whose index says what each row is about.
        """
        path, about = self.folder / f"{name}.csv", list(rows.index.names)
        mine = rows.reset_index()
        mine.insert(len(about), "backend", self.backend)
        found = [mine]
        if self.others and path.exists():
            written = pd.read_csv(path, dtype=str)
            found = [written[written["backend"].isin(self.others)], mine.astype(str)]
        table = _sorted(found)
        rows_of = table.groupby(about, sort=False).ngroup().to_numpy()
        table.iloc[np.argsort(rows_of, kind="stable")].to_csv(path, index=False)
        return read(path)

    def figure(self, name: str, figure: Figure) -> None:
        """Write `NAME.png`."""
        figure.savefig(self.folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)


def read(path: Path) -> pd.DataFrame:
    """A table as numbers: where it has `mean ± deviation`, these are `NAME` and `NAME_sd`."""
    table = pd.read_csv(path)
    for name in table.select_dtypes(exclude="number"):
        if table[name].str.contains(" ± ").any():
            numbers = table[name].str.split(" ± ", expand=True).astype(float)
            table[name], table[f"{name}_sd"] = numbers[0], numbers[1]
    return table


def mean_and_spread(frame: pd.DataFrame, by: Sequence[str], of: Sequence[str]) -> pd.DataFrame:
    """Mean ± standard deviation over the rows that agree in some columns, which are the index.

    The column `seeds` counts the rows.
    """
    groups = frame.groupby(list(by), sort=False)
    means, deviations = groups[list(of)].mean(), groups[list(of)].std()
    cells = {name: list(map(cell, means[name], deviations[name])) for name in of}
    return pd.DataFrame(cells, means.index).assign(seeds=groups.size())


def cell(mean: float, deviation: float = math.nan) -> str:
    """A mean to the second digit of its standard deviation, or to four digits if it has none."""
    if not deviation > 0:
        text = np.format_float_positional(mean, 4, fractional=False, trim="-")
        return text if math.isnan(deviation) else f"{text} ± 0"
    digits = 1 - math.floor(math.log10(deviation))
    form = f".{max(digits, 0)}f"
    return f"{round(mean, digits):{form}} ± {round(deviation, digits):{form}}"


def provenance(name: str, options: Options, also_used: Sequence[str] = ()) -> Mapping[str, str]:
    """The command, the versions, the machine and the date."""
    packages = dict.fromkeys((*PACKAGES[options.backend], *also_used))
    versions = [f"{package} {_version(package)}" for package in packages]
    data = "" if options.data_dir is None else " --data-dir DIR"
    return {
        "backend": options.backend,
        "command": f"python examples/reproductions/{name}.py --{options.effort} "
        f"--backend {options.backend}{data}",
        "packages": ", ".join([*versions, f"Python {platform.python_version()}"]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{options.device}",
        "date": datetime.date.today().isoformat(),
    }


def _sorted(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all, with Pyro's first."""
    return pd.concat(frames).sort_values(
        "backend", key=lambda column: column.map(BACKENDS.index), kind="stable"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"

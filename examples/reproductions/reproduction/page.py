"""The page of a reproduction: what the source reports, what was got, and where it was run."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from reproduction.options import Options

PACKAGES = {
    "pyro": ("pyro-infovae", "torch", "pyro-ppl"),
    "numpyro": ("pyro-infovae", "jax", "numpyro"),
}


def write_page(
    name: str,
    options: Options,
    *,
    title: str,
    reported: str,
    found: str,
    reasons: str,
    tables: Mapping[str, tuple[pd.DataFrame, Mapping[str, str]]],
    figures: Mapping[str, tuple[Figure, str]],
    also_used: Sequence[str] = (),
) -> Path:
    """Write tables, figures and `README.md` to the folder that was asked for.

    Args:
        name: The script's, without its ending.
        options: What was asked for.
        title: Of the page.
        reported: What the source reports.
        found: What was got; its figures are taken from the tables.
        reasons: Why the two differ, or how it is known that they agree.
        tables: A data frame by file name, which becomes `NAME.csv`, and the columns that the page
            shows with the format of each, as in `{"elbo": ".2f"}`.
        figures: A figure by file name, which becomes `NAME.png`, and its caption.
        also_used: Distributions whose versions the page should give too.

    Returns:
        Where the page is.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", ""]
    for heading, text in (
        ("What the source reports", reported),
        ("What we get", found),
        ("Why", reasons),
    ):
        lines += [f"## {heading}", "", text.strip(), ""]
    for file, (figure, caption) in figures.items():
        figure.savefig(options.out / f"{file}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        lines += [f"![{caption}]({file}.png)", "", caption, ""]
    for file, (frame, formats) in tables.items():
        frame.to_csv(options.out / f"{file}.csv", index=False)
        lines += [*markdown(frame, formats), "", f"The whole table: [{file}.csv]({file}.csv).", ""]
    lines += [provenance(name, options, also_used), ""]
    page = options.out / "README.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def markdown(frame: pd.DataFrame, formats: Mapping[str, str]) -> list[str]:
    """Some columns of a data frame, as the lines of a table."""
    rows = [
        " | ".join(_cell(row[column], form) for column, form in formats.items())
        for _, row in frame.iterrows()
    ]
    return [
        f"| {' | '.join(formats)} |",
        "|" + "---|" * len(formats),
        *(f"| {row} |" for row in rows),
    ]


def _cell(value: object, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def mean_and_spread(frame: pd.DataFrame, by: Sequence[str], of: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over the rows that agree in some columns.

    The standard deviation of `elbo` is the column `elbo_sd`, and `seeds` counts the rows.
    """
    groups = frame.groupby(list(by), sort=False)
    spread = groups[list(of)].std().add_suffix("_sd")
    return groups[list(of)].mean().join(spread).join(groups.size().rename("seeds")).reset_index()


def provenance(name: str, options: Options, also_used: Sequence[str] = ()) -> str:
    """The command, the versions, the machine and the date."""
    packages = dict.fromkeys((*PACKAGES[options.backend], *also_used))
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    data = "" if options.data_dir is None else " --data-dir DIR"
    return (
        f"Written by `python examples/reproductions/{name}.py --{options.effort} "
        f"--backend {options.backend}{data}`; {versions}, Python {platform.python_version()}; "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {options.device}; "
        f"{datetime.date.today().isoformat()}."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"

"""The table made of the results: in the terminal, and as CSV."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
from rich.console import Console
from rich.table import Table

from demo.evaluation import ACTIVE, IMPORTANCE_SAMPLES, NEIGHBOURS
from demo.results import Result, by_objective
from demo.tables import text_table

MEASURES = {
    "loss": ("loss", "{:.2f}"),
    "reconstruction": ("recon.", "{:.2f}"),
    "log_prob": ("log p(x)", "{:.2f}"),
    "unreliable": ("k̂>.7", "{:.0%}"),
    "kl": ("KL", "{:.2f}"),
    "mmd_squared": ("MMD²", "{:.4f}"),
    "active_units": ("active", "{:.1f}"),
    "information": ("I(x;z)", "{:.2f}"),
    "knn_accuracy": (f"{NEIGHBOURS}-NN", "{:.1%}"),
    "seconds_per_epoch": ("s/epoch", "{:.3f}"),
}
NOTES = (
    "On held-out images, nats per image. loss: the objective's own, not comparable between rows; "
    f"recon.: -E log p(x|z); log p(x): importance-weighted, {IMPORTANCE_SAMPLES} samples (higher "
    "is better), for hamiltonian from the guide after its flow; k̂>.7: images whose log p(x) is "
    "not to be believed; KL: of q(z|x) from the prior; MMD²: of q(z) from the prior (0 is a "
    f"match); active: dimensions of the code whose mean has a variance above {ACTIVE}; I(x;z): "
    "mutual information of image and code, at most the log of the number of images; "
    f"{NEIGHBOURS}-NN: accuracy of a nearest-neighbour classifier on draws of the code."
)
_UNBOUNDED = 10_000
LIKELIHOODS = {
    1: "p(x|z) is Bernoulli; the images were binarised once.",
    16: "p(x|z) is binomial: a pixel counts the inked cells out of 16.",
}


def notes(levels: int) -> str:
    """What the measures mean, for images of so many levels."""
    return f"{NOTES} {LIKELIHOODS[levels]}"


def table(results: Sequence[Result], *, title: str, width: int) -> Table:
    """The results as a table for a terminal of so many columns.

    Where a cell's mean and deviation do not fit side by side, they are put below one another.
    """
    headings, rows = ["", *by_objective(results)], summary(results)
    style = {"pad_edge": False, "collapse_padding": True}
    side_by_side = text_table(title, headings, rows, **style)
    if Console(width=_UNBOUNDED).measure(side_by_side).maximum <= width:
        return side_by_side
    below = ([cell.replace(" ±", "\n±") for cell in row] for row in rows)
    return text_table(title, headings, below, **style)


def summary(results: Sequence[Result]) -> list[list[str]]:
    """A row per measure, a cell per objective: the mean over the seeds ± standard deviation."""
    rows = []
    for column, (heading, form) in MEASURES.items():
        groups = by_objective(results).values()
        measured = ([float(result.row[column]) for result in group] for group in groups)
        rows.append([heading, *(_spread(values, form) for values in measured)])
    return rows


def _spread(values: Sequence[float], form: str) -> str:
    cell = form.format(mean(values))
    return f"{cell} ± {form.format(stdev(values))}" if len(values) > 1 else cell


def write_tables(results: Sequence[Result], folder: Path) -> list[Path]:
    """Save as CSV, and return where: a row per training, per measure, and per epoch."""
    names = list(by_objective(results))
    frames = {
        "table.csv": pd.DataFrame([result.row for result in results])[
            ["objective", "seed", *MEASURES]
        ],
        "summary.csv": pd.DataFrame(summary(results), columns=["", *names]),
        "curves.csv": pd.DataFrame([row for result in results for row in result.curves]),
    }
    for name, frame in frames.items():
        frame.to_csv(folder / name, index=False)
    return [folder / name for name in frames]

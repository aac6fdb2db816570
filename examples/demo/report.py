"""A training's results, and the table made of them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.table import Table

from demo.evaluation import NEIGHBOURS, Fit, Scores
from demo.pictures import Pictures
from demo.training import Epoch

Row = dict[str, str | float]

TABLE_COLUMNS = (
    "objective",
    "loss",
    "reconstruction",
    "log_prob",
    "unreliable",
    "kl",
    "mmd_squared",
    "knn_accuracy",
    "seconds_per_epoch",
)
HEADINGS = ("loss", "recon.", "log p(x)", "k̂>.7", "KL", "MMD²", f"{NEIGHBOURS}-NN", "s/epoch")
CURVES_COLUMNS = ("objective", "epoch", "training_loss", "reconstruction", "kl", "mmd_squared")

CAPTION = (
    "On held-out images, nats per image. loss: the objective's own, not comparable between rows; "
    "recon.: -E log p(x|z); log p(x): importance-weighted, 500 samples (higher is better), "
    "for hamiltonian from the guide after its flow; k̂>.7: images whose log p(x) is not to be "
    "believed; "
    "KL: of q(z|x) from the prior; MMD²: of q(z) from the prior (0 is a match); "
    f"{NEIGHBOURS}-NN: accuracy of a nearest-neighbour classifier on the codes. {{likelihood}}"
)
LIKELIHOODS = {
    1: "p(x|z) is Bernoulli; the images were binarised once.",
    16: "p(x|z) is binomial: a pixel counts the inked cells out of 16.",
}


@dataclass(frozen=True)
class Result:
    """Everything kept of one training.

    Attributes:
        objective: Its name.
        epochs: What each pass gave.
        fits: The fit to held-out images after each pass.
        scores: The fit and more after the last pass.
        pictures: What the figures show.
    """

    objective: str
    epochs: Sequence[Epoch]
    fits: Sequence[Fit]
    scores: Scores
    pictures: Pictures

    @property
    def row(self) -> Row:
        """The row of `TABLE_COLUMNS`."""
        seconds = median(epoch.seconds for epoch in self.epochs)
        return {"objective": self.objective, **vars(self.scores), "seconds_per_epoch": seconds}

    @property
    def curves(self) -> list[Row]:
        """The rows of `CURVES_COLUMNS`."""
        return [
            {"objective": self.objective, "epoch": number, "training_loss": epoch.loss, **vars(fit)}
            for number, (epoch, fit) in enumerate(zip(self.epochs, self.fits, strict=True), start=1)
        ]


def table(results: Sequence[Result], *, title: str, levels: int) -> Table:
    """The results as a table for the terminal."""
    caption = CAPTION.format(likelihood=LIKELIHOODS[levels])
    table = Table(
        title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("objective", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    formats = ("{}", "{:.2f}", "{:.2f}", "{:.2f}", "{:.0%}", "{:.2f}", "{:.4f}", "{:.1%}", "{:.3f}")
    for result in results:
        cells = zip(formats, TABLE_COLUMNS, strict=True)
        table.add_row(*(form.format(result.row[column]) for form, column in cells))
    return table


def write_tables(results: Sequence[Result], folder: Path) -> list[Path]:
    """Save the table and the curves as CSV, and return where."""
    paths = [folder / "table.csv", folder / "curves.csv"]
    _write_csv(paths[0], TABLE_COLUMNS, [result.row for result in results])
    _write_csv(paths[1], CURVES_COLUMNS, [row for result in results for row in result.curves])
    return paths


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)

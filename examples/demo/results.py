"""A training's results, kept so that a second run need not repeat it."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from demo.evaluation import Fit, Scores
from demo.pictures import Pictures

Row = dict[str, str | float]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave.

    Attributes:
        loss: The objective's loss in nats per image, averaged over the minibatches.
        seconds: How long the pass took.
        fit: The fit to held-out images after it.
    """

    loss: float
    seconds: float
    fit: Fit


@dataclass(frozen=True)
class Result:
    """Everything kept of one training.

    Attributes:
        objective: Its name.
        seed: What it was trained with.
        epochs: What each pass gave.
        scores: What was measured after the last.
        pictures: What the figures show.
    """

    objective: str
    seed: int
    epochs: Sequence[Epoch]
    scores: Scores
    pictures: Pictures

    @property
    def row(self) -> Row:
        """What the table says of it."""
        return {
            "objective": self.objective,
            "seed": self.seed,
            **asdict(self.scores),
            "seconds_per_epoch": median(epoch.seconds for epoch in self.epochs),
        }

    @property
    def curves(self) -> list[Row]:
        """What the curves say of each epoch."""
        return [
            {
                "objective": self.objective,
                "seed": self.seed,
                "epoch": number,
                "training_loss": epoch.loss,
                **asdict(epoch.fit),
            }
            for number, epoch in enumerate(self.epochs, start=1)
        ]


def by_objective(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each objective, in the order of their seeds."""
    names = dict.fromkeys(result.objective for result in results)
    return {name: [r for r in results if r.objective == name] for name in names}


def save(result: Result, folder: Path, settings: Mapping[str, object]) -> None:
    """Keep a result, and the settings that it is good for."""
    path = _path(folder, result.objective, result.seed)
    path.parent.mkdir(exist_ok=True)
    record = {
        "settings": settings,
        "epochs": [asdict(epoch) for epoch in result.epochs],
        "scores": asdict(result.scores),
    }
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, record=json.dumps(record), **vars(result.pictures))
    unfinished.replace(path)


def restore(
    objective: str, seed: int, folder: Path, settings: Mapping[str, object]
) -> Result | None:
    """A result kept by an earlier run with the same settings, if there is one."""
    try:
        with _path(folder, objective, seed).open("rb") as opened, np.load(opened) as file:
            record = json.loads(str(file["record"]))
            pictures = {name: file[name] for name in Pictures.__dataclass_fields__}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    if record["settings"] != settings:
        return None
    return Result(
        objective,
        seed,
        [Epoch(**{**epoch, "fit": Fit(**epoch["fit"])}) for epoch in record["epochs"]],
        Scores(**record["scores"]),
        Pictures(**pictures),
    )


def _path(folder: Path, objective: str, seed: int) -> Path:
    return folder / "trainings" / f"{objective}-{seed}.npz"

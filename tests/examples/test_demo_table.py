"""The demo's table in a terminal of 80 columns."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from compare_objectives import OBJECTIVES
from rich.console import Console

from demo.evaluation import Fit, Scores
from demo.pictures import Pictures
from demo.report import MEASURES, table
from demo.results import Epoch, Result


def result(objective: str, seed: int) -> Result:
    scores = Scores(
        reconstruction=141.73 + seed,
        kl=7.09,
        mmd_squared=0.0538,
        loss=1149.22,
        log_prob=-142.03 + seed,
        unreliable=0.75,
        active_units=2,
        information=5.2,
        knn_accuracy=0.836,
    )
    nothing = np.zeros(0)
    pictures = Pictures(nothing, nothing, nothing, nothing)
    return Result(objective, seed, [Epoch(149.2, 0.07, Fit(141.7, 7.1, 0.05))], scores, pictures)


def printed(names: Sequence[str], *, num_seeds: int, width: int = 80) -> str:
    results = [result(name, seed) for seed in range(num_seeds) for name in names]
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(table(results, title="digits, 2-D code, 100 epochs", width=width))
    return stream.getvalue()


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_every_name_and_number_is_whole(num_seeds: int) -> None:
    text = printed(OBJECTIVES, num_seeds=num_seeds)
    words = text.split()
    for name in OBJECTIVES:
        assert words.count(name) == 1
    for number in ("1149.22", "0.0538", "7.09"):
        assert words.count(number) == len(OBJECTIVES)
    assert words.count("±") == (len(OBJECTIVES) * len(MEASURES) if num_seeds > 1 else 0)
    assert "…" not in text


def test_deviations_stand_beside_the_means_where_there_is_room() -> None:
    assert "142.73 ± 1.00" in printed(["elbo", "mmd"], num_seeds=3)
    assert "142.73 ± 1.00" in printed(OBJECTIVES, num_seeds=3, width=120)


def test_a_name_that_does_not_fit_goes_on_in_the_next_line() -> None:
    text = printed([letter * 30 for letter in "abcdef"], num_seeds=3)
    assert [text.split("loss")[0].count(letter) for letter in "bf"] == [30, 30]

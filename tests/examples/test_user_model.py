"""The regression example: its data, its guide, and a short run under every objective."""

import csv
import math
from pathlib import Path

import pyro
import pytest
from pyro.infer import SVI, Trace_ELBO
from user_model import BETA, GAMMA, OBJECTIVES, SITES, VISITS, Guide, main, model, simulate


def test_data_have_the_means_that_the_effects_give_them() -> None:
    data, effect = simulate(0)
    rate = (data.visits @ BETA + effect[:, None]).exp()
    standard_error = rate.sum().sqrt()
    assert abs((data.counts - rate).sum()) < 4 * standard_error
    assert data.counts.shape == (SITES, VISITS)
    residual = effect - data.sites @ GAMMA
    assert abs(residual.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * SITES)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "hamiltonian" else [])
        for name in OBJECTIVES
    ],
)
def test_every_objective_trains_on_minibatches(name: str) -> None:
    data, _ = simulate(0)
    guide = Guide()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=OBJECTIVES[name]())
    elbo = Trace_ELBO(num_particles=10)
    before = elbo.loss(model, guide, data, SITES)
    for _ in range(60):
        svi.step(data, 64)
    assert elbo.loss(model, guide, data, SITES) < before - 100


def test_a_short_run_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("user_model.DRAWS", 5)
    assert main(["--steps=2", f"--out={tmp_path}", "--quiet"]) == 0
    with (tmp_path / "user_model.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("objective") for row in rows] == list(OBJECTIVES)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in OBJECTIVES)


def test_a_folder_that_cannot_be_written_gives_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--out={__file__}"])
    assert "Cannot write to" in capsys.readouterr().err

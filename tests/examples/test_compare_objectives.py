"""The demo from its command line: tables and figures, interrupted and repeated, and bad input."""

import csv
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import compare_objectives
import numpy as np
import pytest
import torch
from compare_objectives import OBJECTIVES, main

from demo.backend import Setting
from tests.examples.conftest import ELBO_RUN

SCRIPT = Path(compare_objectives.__file__)
FEW = ["elbo", "infomax", "mmd+hamiltonian"]
FIGURES = ("code_space.png", "prior_samples.png", "manifold.png", "training_curves.png")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--objectives", "elbow"], r"invalid choice: 'elbow' \(choose from '?elbo'?, '?mmd'?"),
        (["--data", "cifar"], "invalid choice: 'cifar'"),
        (["--epochs", "0"], "argument --epochs: Expected an integer of at least 1; got '0'"),
        (["--latent-dim", "1"], "--latent-dim: Expected an integer of at least 2; got '1'"),
        (["--seed", "one"], "argument --seed: Expected an integer of at least 0; got 'one'"),
        (["--device", "abacus"], "error: Expected a device .*; got 'abacus'"),
        (["--backend", "numpyro", "--device", "cpu"], "Expected no --device with .*JAX_PLATFORMS"),
        (["--seeds", "0"], "argument --seeds: Expected an integer of at least 1; got '0'"),
        (["--data", "mnist", "--data-dir", "nowhere"], "Found no IDX files in nowhere; looked for"),
        (["--data-dir", "folder"], "--data-dir is for --data mnist or fashion-mnist"),
        (["--out", __file__], "error: .*File exists: "),
    ],
)
def test_bad_input_gives_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cuda", f"--out={tmp_path}"])
    assert capsys.readouterr().err.endswith(
        "error: Expected a device that this build of PyTorch can use; got 'cuda'\n"
    )


def test_a_backend_that_is_not_installed_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "demo.with_numpyro", raising=False)
    monkeypatch.setitem(sys.modules, "numpyro.infer", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "numpyro"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("numpyro needs numpyro: pip install 'pyro-infovae[demo,numpyro]'")


@pytest.mark.slow
def test_the_script_runs_from_the_root(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(b"damaged")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"too")
    run = subprocess.run(
        [sys.executable, SCRIPT, "--data=mnist", f"--data-dir={tmp_path}", f"--out={tmp_path}"],
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("compare_objectives.py: error: Expected an IDX file")
    assert len(run.stderr.splitlines()) == 1


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Sources(HTMLParser):
    """What a page loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("pyro", ["infomax"]),
        pytest.param("pyro", list(OBJECTIVES), marks=pytest.mark.slow),
        # The others take their time to compile.
        pytest.param("numpyro", FEW, marks=pytest.mark.slow),
    ],
)
def test_a_short_run_writes_every_table_and_figure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    names: list[str],
) -> None:
    monkeypatch.setattr("demo.evaluation.IMPORTANCE_SAMPLES", 20)
    out = tmp_path / "new" / "folder"
    argv = ["--backend", name, "--epochs", "2", "--out", str(out)]
    assert main([*argv, "--objectives", *names]) == 0

    table, curves = rows(out / "table.csv"), rows(out / "curves.csv")
    assert ",".join(table[0]) == (
        "objective,seed,loss,reconstruction,log_prob,unreliable,kl,mmd_squared,active_units,"
        "information,knn_accuracy,seconds_per_epoch"
    )
    assert ",".join(curves[0]) == "objective,seed,epoch,training_loss,reconstruction,kl,mmd_squared"
    assert [row["objective"] for row in table] == names
    assert [(row["objective"], row["epoch"]) for row in curves] == [
        (name, epoch) for name in names for epoch in "12"
    ]
    for row in table + curves:
        numbers = [float(value) for column, value in row.items() if column != "objective"]
        assert all(map(math.isfinite, numbers))
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(Sources(page).found) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in Sources(page).found)
    assert not re.search(r"url\(|@import|<script|https?://", page)
    assert all(f"<th>{name}</th>" in page for name in names)


def test_the_loss_of_the_elbo_is_its_two_terms_and_bounds_the_evidence(elbo_run: Path) -> None:
    (row,) = rows(elbo_run / "table.csv")
    loss, terms = float(row["loss"]), float(row["reconstruction"]) + float(row["kl"])
    assert loss == pytest.approx(terms, rel=0.02)
    assert -float(row["log_prob"]) < loss


@pytest.mark.slow
def test_seeds_are_trained_in_turn_and_the_table_shows_their_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--epochs=1", "--objectives", "elbo", "mmd", "--seed=3", "--seeds=2", "--collapse"]
    assert main([*argv, f"--out={tmp_path}"]) == 0
    table = rows(tmp_path / "table.csv")
    assert [(row["objective"], row["seed"]) for row in table] == [
        ("elbo", "3"),
        ("mmd", "3"),
        ("elbo", "4"),
        ("mmd", "4"),
    ]
    losses = [float(row["loss"]) for row in table if row["objective"] == "elbo"]
    assert losses[0] != losses[1]
    spread = f"{np.mean(losses):.2f} ± {np.std(losses, ddof=1):.2f}"
    assert spread in capsys.readouterr().out
    assert spread in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_second_run_repeats_no_finished_training(
    elbo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(elbo_run, tmp_path / "out")
    argv = [*ELBO_RUN, f"--out={out}"]
    trained: list[str] = []
    elbo = OBJECTIVES["elbo"]
    monkeypatch.setitem(OBJECTIVES, "elbo", lambda b, s: trained.append("elbo") or elbo(b, s))
    assert main(argv) == 0
    assert trained == []
    for name in ("table.csv", "curves.csv", *FIGURES):
        assert (out / name).read_bytes() == (elbo_run / name).read_bytes()

    assert main([*argv, "--latent-dim=2"]) == 0
    assert trained == ["elbo"]
    (kept,) = (out / "trainings").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert main([*argv, "--latent-dim=2"]) == 0
    assert trained == ["elbo", "elbo"]


def test_an_interrupt_keeps_what_is_finished(
    elbo_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(half: object, setting: Setting) -> None:
        raise KeyboardInterrupt

    out = shutil.copytree(elbo_run, tmp_path / "out")
    monkeypatch.setitem(OBJECTIVES, "interrupted", interrupted)
    assert main([*ELBO_RUN, "interrupted", f"--out={out}"]) == 130
    assert [row["objective"] for row in rows(out / "table.csv")] == ["elbo"]
    assert all((out / name).is_file() for name in (*FIGURES, "report.html"))
    assert "finished trainings are kept (1)" in capsys.readouterr().out

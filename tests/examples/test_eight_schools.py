"""The example, cut short: it runs with both backends, and its tables tell what the draws tell."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.numpyro_backend.conftest import quick_double_precision as quick_double_precision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz", exc_type=ImportError)
    eight_schools = pytest.importorskip("eight_schools")
    report = pytest.importorskip("schools.report")
    from schools.settings import Settings


SHORT = Settings(steps=3, warmup=10, draws=30, quiet=True)


@pytest.mark.slow
def test_it_compares_three_posteriors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(eight_schools, "QUICK", SHORT)
    assert eight_schools.main(["--quick", "--quiet", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert not output.err
    for word in ("AutoNormal", "with flow", "NUTS", "theta[7]", "elpd"):
        assert word in output.out
    names = ["forest.png", "autonormal.nc", "with_flow.nc", "nuts.nc"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)
    assert len((tmp_path / "marginals.csv").read_text().splitlines()) == 1 + 3 * 10
    assert len((tmp_path / "leave_one_out.csv").read_text().splitlines()) == 1 + 3
    flow = az.from_netcdf(str(tmp_path / "with_flow.nc"))
    assert flow.attrs["refine"] == "TraceHamiltonian_ELBO"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_double_precision")
@pytest.mark.parametrize("posterior", ["guide_with_flow", "chain"])
def test_numpyro_has_the_same_posteriors(posterior: str) -> None:
    """Short ones are far from each other; their names and dims are the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build = getattr(importlib.import_module("schools.programs"), posterior)
        ours, theirs = (
            build(importlib.import_module(f"halves.with_{backend}"), SHORT)
            for backend in ("numpyro", "pyro")
        )
    for group in ("posterior", "log_likelihood"):
        sites = {name: values.sizes for name, values in theirs[group].data_vars.items()}
        assert {name: values.sizes for name, values in ours[group].data_vars.items()} == sites


def test_the_table_has_moments_and_distances() -> None:
    """Of draws 0 … 9 as the truth, and of the same shifted by 3 under another name."""
    values = np.arange(10.0)[None]

    def posterior(shift: float) -> Any:
        lone = values + shift
        return az.from_dict({"mu": lone, "tau": lone, "theta": np.repeat(lone[..., None], 8, -1)})

    draws = report.draws_of(posterior(0.0))
    assert list(draws) == ["mu", "tau", *(f"theta[{i}]" for i in range(8))]
    found = report.marginals({"guide": posterior(3.0), report.TRUTH: posterior(0.0)})
    table = report.marginals_table(found)
    assert [str(column.header) for column in table.columns] == ["", "guide", "NUTS"]
    for column, cell in zip(table.columns[1:], ("7.50 ± 2.87  3.00", "4.50 ± 2.87"), strict=True):
        assert set(column.cells) == {cell}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", __file__], "error: Cannot write to .*: File exists"),
        (["--seed", "one"], "argument --seed: Expected an integer of at least 0; got 'one'"),
    ],
)
def test_bad_input_gives_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        eight_schools.main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_missing_extra_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "schools.report")
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(SystemExit, match="2"):
        eight_schools.main(["--out", str(tmp_path)])
    assert "needs arviz: pip install 'pyro-infovae[arviz,demo,numpyro]'" in capsys.readouterr().err

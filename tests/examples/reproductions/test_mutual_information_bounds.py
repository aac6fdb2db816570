"""The critics climb with both backends, past an information that numpy finds as well."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from tests.numpyro_backend.conftest import quick_double_precision as quick_double_precision

script = pytest.importorskip("mutual_information_bounds")
errors = importlib.import_module("information_stairs.errors")
page = importlib.import_module("information_stairs.page")
problem = importlib.import_module("information_stairs.problem")


@pytest.mark.usefixtures("quick_double_precision")
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_it_writes_table_figures_and_page(tmp_path: Path, backend: str) -> None:
    options = ["--check", "--jobs", "1", "--backend", backend, "--out", str(tmp_path)]
    assert script.main(options) == 0
    for figure in ("climbs.png", "spreads.png"):
        assert 10_000 < (tmp_path / figure).stat().st_size < 150_000
    tables = {n: pd.read_csv(tmp_path / f"{n}.csv") for n in problem.NEGATIVES}
    assert {n: len(table) for n, table in tables.items()} == {"all": 2 * 5, "shift": 5}
    for table in tables.values():
        assert np.isfinite(table.drop(columns=errors.SETTING)).all(axis=None)
    text = (tmp_path / "README.md").read_text()
    assert "`infonce` stays below its ceiling" in text
    assert f"--check --backend {backend}" in text


@pytest.mark.parametrize("information", problem.STAIRS)
def test_the_pairs_have_the_information(information: float) -> None:
    """By the log determinant of their joint covariance, which is I / d for every coordinate."""
    rho = problem.correlation(information)
    _, log_determinant = np.linalg.slogdet(np.array([[1.0, rho], [rho, 1.0]]))
    assert -0.5 * problem.DIMS * log_determinant == pytest.approx(information)


def test_the_exact_critic_is_the_ratio_of_densities() -> None:
    information, dims = 3.0, problem.DIMS
    rho = problem.correlation(information)
    identity = np.eye(dims)
    joint = np.block([[identity, rho * identity], [rho * identity, identity]])
    x, z = np.random.default_rng(0).standard_normal((2, 5, dims))
    expected = multivariate_normal(cov=joint).logpdf(np.concatenate([x, z], 1))
    expected -= multivariate_normal(cov=identity).logpdf(x)
    expected -= multivariate_normal(cov=identity).logpdf(z)
    np.testing.assert_allclose(problem.log_ratio(x, z, information, rho), expected, rtol=1e-9)


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_exact_critics_miss_by_what_the_bounds_miss(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 2 nats NWJ, and JS read out as NWJ, are unbiased, and InfoNCE is below."""
    programs = importlib.import_module(f"information_stairs.with_{backend}")
    monkeypatch.setattr(programs, "STAIRS", (2.0,))
    plan = problem.Plan(iterations=400, hidden=(), learning_rate=0.0)
    found = programs.estimates(problem.Climb("normal", "exact", "all"), plan, "cpu")
    means = {bound: float(steps.mean()) for bound, steps in found.items()}
    standard_errors = {bound: float(steps.std()) / 20 for bound, steps in found.items()}
    assert means["nwj"] == pytest.approx(2.0, abs=4 * standard_errors["nwj"])
    np.testing.assert_allclose(found["js"], found["nwj"], rtol=1e-3)
    assert 1.0 < means["infonce"] < 2.0 - 4 * standard_errors["infonce"]
    assert found["infonce"].max() <= errors.CEILINGS["all"]


def test_errors_are_those_of_every_step_of_the_second_half() -> None:
    setting = {"pairs": "normal", "negatives": "all", "critic": "joint", "seed": 0}
    steps = np.random.default_rng(0).standard_normal((5, 40)).cumsum(1)
    rows = [setting | row for row in errors.windows({"nwj": steps.ravel()})]
    table = errors.errors(pd.DataFrame(rows))
    settled = steps[:, 20:] - np.array(problem.STAIRS)[:, None]
    np.testing.assert_allclose(table["bias"], settled.mean(1))
    np.testing.assert_allclose(table["sd"], settled.std(1))
    np.testing.assert_allclose(table["rmse"], np.sqrt((settled**2).mean(1)))


@pytest.mark.parametrize(("last", "verb"), [(3.0, "grows (1.00 to 3.00"), (0.5, "does not grow")])
def test_the_page_says_what_the_table_says(last: float, verb: str) -> None:
    rows = [
        {"pairs": "normal", "negatives": "all", "critic": critic, "bound": bound}
        | {"information": nats, "estimate": 1.0, "bias": 1 - nats, "sd": sd, "rmse": 1.0}
        for critic in ("joint", "exact")
        for bound in problem.TRAINED_AS
        for nats, sd in ((2.0, 1.0), (10.0, last))
    ]
    assert f"`nwj` with a joint critic {verb}" in page.found(pd.DataFrame(rows))

"""The critics climb with both backends, past an information that numpy finds as well."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

from tests.examples.reproductions.conftest import BACKENDS, Check

script = pytest.importorskip("mutual_information_bounds")
errors = importlib.import_module("information_stairs.errors")
problem = importlib.import_module("information_stairs.problem")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_check(check: Check, backend: str) -> None:
    tables = check(script, backend)
    assert {n: len(table) for n, table in tables.items()} == {"all": 2 * 5, "shift": 5}


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


@pytest.mark.parametrize("backend", BACKENDS)
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

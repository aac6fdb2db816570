"""What the pages of docs/reproductions say is what their tables say, of both backends."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reproduction.results import read

FOLDER = Path(__file__).parents[1] / "docs" / "reproductions"
PAGES = sorted(path.parent.name for path in FOLDER.glob("*/README.md"))
BACKENDS = ("pyro", "numpyro")
NUMBER = r"-?\d[\d.]*(?: ± \d[\d.]*)?"

K1, K10, PLAIN = "HVAE K=1", "HVAE K=10", ", no tempering"
BEST = "HVAE K=1, quadratic"
ONE, OTHER = "mlp", "autoregressive"
OURS, DAIS, ALONE = "TraceHamiltonian_ELBO", "AutoDAIS", "AutoNormal"
SIZES = (100, 200, 400, 800, 1400)


def words(page: str) -> str:
    """The page's, in one line."""
    return " ".join((FOLDER / page / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", PAGES)
def test_figures_stated_are_those_of_the_tables(page: str) -> None:
    """Pyro's and NumPyro's stand before a comment that names table, row and column."""
    stated = re.findall(rf"({NUMBER}) / ({NUMBER})(?:<!--(.+?)-->)?", words(page))
    assert len(stated) > 5
    for *figures, source in stated:
        assert source, f"no source for {figures}"
        name, *row, column = source.split("|")
        table = pd.read_csv(FOLDER / page / f"{name}.csv", dtype=str)
        keys = list(table.columns[: list(table.columns).index("backend") + 1])
        assert figures == [table.set_index(keys).loc[(*row, b), column] for b in BACKENDS], source


@pytest.mark.parametrize("page", PAGES)
def test_tables_and_pictures_are_there(page: str) -> None:
    shown = re.findall(r":file: (\S+)|!\[[^]]*\]\((\S+)\)", words(page))
    there = {path.name for path in (FOLDER / page).iterdir()}
    assert there == {name for pair in shown for name in pair if name} | {"README.md"}
    made = pd.read_csv(FOLDER / page / "made_with.csv")
    assert list(made["backend"]) == list(BACKENDS)


def rows(page: str, table: str, backend: str, *keys: str) -> pd.DataFrame:
    """A backend's rows of a table, by some of its columns."""
    frame = read(FOLDER / page / f"{table}.csv")
    return frame[frame["backend"] == backend].drop(columns="backend").set_index(list(keys))


def apart(a: pd.Series, b: pd.Series, column: str) -> int:
    """1 or -1 where a mean is higher or lower by more than both deviations together, else 0."""
    difference = a[column] - b[column]
    beyond = abs(difference) > a[f"{column}_sd"] + b[f"{column}_sd"]
    return int(np.sign(difference)) * int(beyond)


def order(a: pd.Series, b: pd.Series, column: str) -> int:
    """1 or -1 where a mean is higher or lower by more than two standard errors, else 0.

    A seed's own standard error, where it is known, is added to that over the seeds.
    """
    difference = a[column] - b[column]
    variance = sum(
        (row[f"{column}_sd"] ** 2 + row.get(f"{column}_se", 0.0) ** 2) / row["seeds"]
        for row in (a, b)
    )
    return int(np.sign(difference)) * int(abs(difference) > 2 * np.sqrt(variance))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hvae_on_the_gaussian_model(backend: str) -> None:
    table = rows("hvae_gaussian", "table", backend, "dim", "method", "gradients")
    at = {g: {m: table.loc[(101, m, g)] for m in (K10, "VB")} for g in (3300, 11_000, 33_000)}
    assert [apart(row[K10], row["VB"], "error") for row in at.values()] == [1, -1, -1]
    assert apart(at[33_000][K10], at[3300]["VB"], "error") == -1
    for name, error in ((K1, 0), (K10, -1)):
        tempered, plain = (table.loc[(101, n, 33_000)] for n in (name, name + PLAIN))
        assert apart(tempered, plain, "shortfall") == -1
        assert apart(tempered, plain, "error") == error
    assert all(
        table.loc[(dim, K10, 33_000), "gap"] > table.loc[(dim, "VB", 33_000), "gap"]
        for dim in (1, 11, 101)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_hvae_on_images(backend: str) -> None:
    table = rows("hvae_images", "table", backend, "method", "steps").sort_index()
    vae = table.loc["VAE"]
    flows = table.drop("VAE")
    assert flows["nll"].idxmin() == (BEST, 6600)
    assert all(apart(row, vae.loc[13_200], "nll") == 1 for _, row in flows.iterrows())
    better = [m for (m, n), row in flows.iterrows() if apart(row, vae.loc[n], "nll") == -1]
    assert better == ["HVAE K=10, free"]
    assert apart(flows.loc[(BEST, 6600)], vae.loc[6600], "nll") == 1
    assert (abs(flows["nll_own"] - flows["nll_encoder"]) < 0.06).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_infomax(backend: str) -> None:
    table = rows("infomax_vae", "alphas", backend, "decoder", "alpha")
    elbo, most = table.loc[(ONE, 0.0)], table.loc[(ONE, 16.0)]
    assert order(most, elbo, "information") == 1
    assert order(most, elbo, "log_prob") == -1
    assert all(order(row, elbo, "accuracy") <= 0 for _, row in table.loc[ONE].iterrows())
    more = [a for a, row in table.loc[ONE].iterrows() if order(row, elbo, "active_units") > 0]
    assert more == ([2.0] if backend == "pyro" else [])
    elbo, some, most = (table.loc[(OTHER, alpha)] for alpha in (0.0, 8.0, 16.0))
    for column in ("information", "active_units", "accuracy", "log_prob"):
        assert order(some, elbo, column) == 1
    assert order(most, elbo, "log_prob") == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_infovae(backend: str) -> None:
    table = rows("infovae", "two_points", backend, "objective", "step")
    elbo, mmd = table.loc[("elbo", 5000)], table.loc[("mmd", 5000)]
    assert order(elbo, mmd, "marginal_kl") == 1
    assert order(elbo, mmd, "gap") == -1
    table = rows("infovae", "sizes", backend, "objective", "size")
    assert order(table.loc[("elbo", 100)], table.loc[("mmd", 100)].abs(), "log_det") == 1
    sides = [order(table.loc[("mmd", n)], table.loc[("elbo", n)], "log_prob") for n in SIZES]
    assert sides == [0, 1, -1, -1, -1]
    assert table["unreliable"].groupby("objective").idxmax().loc[["elbo", "mmd"]].tolist() == [
        ("elbo", 100),
        ("mmd", 100),
    ]
    table = rows("infovae", "codes", backend, "objective")
    assert table["mmd_squared"].idxmin() == "mmd"
    assert (table["knn_accuracy"].idxmax(), table["reconstruction"].idxmin()) == ("elbo", "elbo")


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_on_mutual_information(backend: str) -> None:
    tables = {
        kind: rows("mutual_information_bounds", kind, backend, "pairs", "critic", "bound")
        for kind in ("all", "shift")
    }
    normal = tables["all"].loc["normal"]
    for bound in ("nwj", "dv"):
        for critic in ("joint", "separable"):
            assert normal.loc[(critic, bound), "sd 10"] > normal.loc[(critic, bound), "sd 2"]
    for kind, ceiling in (("all", np.log(64)), ("shift", np.log(2))):
        infonce = tables[kind].xs("infonce", level="bound")
        assert all((infonce[f"bias {n}"] + n <= ceiling).all() for n in (2, 4, 6, 8, 10))
    for critic in ("joint", "separable"):
        assert normal.loc[(critic, "smile"), "sd 10"] < normal.loc[(critic, "js"), "sd 10"]
    assert normal.drop("exact")["rmse 10"].idxmin() == ("separable", "smile")


@pytest.mark.parametrize("backend", BACKENDS)
def test_rivals(backend: str) -> None:
    table = rows("against_rivals", "posteriors", backend, "problem", "num_steps", "method")
    sides = {
        (problem, rival): [
            order(table.loc[(problem, k, OURS)], table.loc[(problem, k, rival)], "bound")
            for k in (4, 8, 16)
        ]
        for problem in ("funnel", "logistic")
        for rival in (ALONE, DAIS)
    }
    assert sides["funnel", ALONE] == sides["logistic", ALONE] == [1, 1, 1]
    assert sides["funnel", DAIS] == [-1, 0, 0]
    assert sides["logistic", DAIS] == [-1, -1, -1]
    assert table.loc["funnel"]["sd_error"].between(0.9, 0.95).all()
    errors = table.loc["logistic"]["sd_error"].unstack("method")
    assert (errors.idxmin(axis=1) == OURS).all()
    table = rows("against_rivals", "autoencoders", backend, "alpha", "method")
    for alpha, rival, side in ((0.0, "pythae", 0), (1.0, "pythae", 0), (1.0, "Trace_MMD", -1)):
        ours = table.loc[(alpha, "TraceMMD_ELBO")]
        for column in ("log_evidence", "mmd_squared"):
            assert order(ours, table.loc[(alpha, rival)], column) == side
    if backend == "pyro":
        assert table.loc[(0.0, "TraceMMD_ELBO, compiled"), "ratio"] < 0.5

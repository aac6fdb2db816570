"""HVAE's Gaussian model: its exact mathematics, and the reproduction cut short."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from tests.examples.reproductions.conftest import BACKENDS, Check
from tests.numpyro_backend.conftest import quick_double_precision as quick_double_precision

hvae_gaussian = pytest.importorskip("hvae_gaussian")
from hvae_gaussian_parts.measure import compare, squared_distance  # noqa: E402
from hvae_gaussian_parts.methods import METHODS  # noqa: E402
from hvae_gaussian_parts.problem import (  # noqa: E402
    DataSets,
    Parameters,
    draw,
    expected_shift_error,
    least_gap_from_prior,
    log_evidence,
    maximum_likelihood,
    posterior,
    truth,
)
from hvae_gaussian_parts.programs import fit  # noqa: E402

X = np.array([[0.3, -1.0], [1.1, 0.4], [-0.2, 2.0], [0.9, 0.1]])
DATA = DataSets(len(X), X.mean(0)[None], ((X - X.mean(0)) ** 2).sum(0)[None])
PARAMETERS = Parameters(np.array([0.2, -0.5]), np.array([0.7, 1.6]))


def test_evidence_is_that_of_the_dense_normal() -> None:
    expected = sum(
        multivariate_normal(np.full(4, shift), sigma**2 * np.eye(4) + 1).logpdf(column)
        for column, shift, sigma in zip(X.T, PARAMETERS.shift, PARAMETERS.sigma, strict=True)
    )
    np.testing.assert_allclose(log_evidence(PARAMETERS, DATA), [expected])


def test_maximum_likelihood_is_where_a_search_finds_it() -> None:
    def loss(theta: np.ndarray) -> float:
        return -log_evidence(Parameters(theta[:2], np.exp(theta[2:])), DATA).item()

    search = minimize(loss, np.zeros(4), tol=1e-10)
    best = maximum_likelihood(DATA)
    np.testing.assert_allclose(best.shift[0], search.x[:2], atol=1e-4)
    np.testing.assert_allclose(np.log(best.sigma[0]), search.x[2:], atol=1e-4)


def test_posterior_is_that_of_a_sum_over_a_grid() -> None:
    z = np.linspace(-6, 6, 4001)
    loc, scale = posterior(PARAMETERS, DATA)
    for j, (shift, sigma) in enumerate(zip(PARAMETERS.shift, PARAMETERS.sigma, strict=True)):
        likelihood = norm(z + shift, sigma).logpdf(X[:, j, None]).sum(0)
        density = np.exp(norm.logpdf(z) + likelihood)
        density /= density.sum()
        mean = (z * density).sum()
        assert loc[0, j] == pytest.approx(mean)
        assert scale[0, j] ** 2 == pytest.approx(((z - mean) ** 2 * density).sum())


def test_error_of_the_best_shift_is_mostly_the_latents_variance() -> None:
    parameters, size = Parameters(np.array([1.0, -2.0, 0.0]), np.array([0.5, 1.0, 2.0])), 4
    data = draw(parameters, size=size, seeds=range(4000))
    errors = ((data.mean - parameters.shift) ** 2).sum(-1)
    standard_error = errors.std() / np.sqrt(len(errors))
    expected = expected_shift_error(parameters, size=size)
    assert abs(errors.mean() - expected) < 4 * standard_error
    np.testing.assert_allclose(data.scatter.mean(0), (size - 1) * parameters.sigma**2, rtol=0.1)


def test_no_law_of_the_same_volume_is_nearer_than_the_least_gap() -> None:
    """Over all normals of determinant 1, the divergence to N(0, diag(τ², 1)) by a search."""
    _, tau = posterior(PARAMETERS, DATA)

    def divergence(entries: np.ndarray, tau: float) -> float:
        factor = np.array([[np.exp(entries[0]), 0.0], [entries[1], np.exp(-entries[0])]])
        law, target = factor @ factor.T, np.diag([tau**2, 1.0])
        ratio = np.linalg.solve(target, law)
        return 0.5 * (np.trace(ratio) - 2 - np.linalg.slogdet(ratio)[1])

    expected = sum(minimize(divergence, np.zeros(2), args=(t,), tol=1e-10).fun for t in tau[0])
    assert least_gap_from_prior(PARAMETERS, DATA) == pytest.approx(expected)


def test_the_truth_is_the_papers() -> None:
    five = truth(5)
    np.testing.assert_allclose(five.shift, [-0.4, -0.2, 0.0, 0.2, 0.4])
    np.testing.assert_allclose(five.sigma, [1.0, 0.325, 0.1, 0.325, 1.0])
    assert (truth(1).shift, truth(1).sigma) == (0, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_double_precision")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mean_field_fit_finds_the_best_parameters_and_the_posterior(backend: str) -> None:
    data = draw(truth(1), size=20, seeds=(0, 1))
    plan = {"learning_rate": 0.01, "draws": 1000, "seed": 0}
    early, end = fit(METHODS["VB"], data, (150, 1500), **plan, backend=backend, device="cpu")
    columns = compare(end.parameters, end.bound, data, truth(1))
    assert (early.parameters.sigma > 1.5 * end.parameters.sigma).all()
    assert (columns["shortfall"] < 0.02).all()
    assert (np.abs(columns["gap"]) < 0.02).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_check(check: Check, backend: str) -> None:
    table = check(hvae_gaussian, backend)["table"]
    assert list(table["method"].unique()) == list(METHODS)
    start = Parameters(np.zeros(2), np.full(2, np.exp(3.0)))
    assert (table["error"] < squared_distance(start, truth(2))).all()
    assert list(table["steps"]) == [66, 33, 6, 33, 6]
    flows = table[table["method"] != "VB"]
    assert (flows["gap"] > flows["least_gap"] - 0.2).all()

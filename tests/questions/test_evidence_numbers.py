"""Evidence: what is computed from weights, against the definitions and two other libraries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto

from pyro_infovae._core.evidence import Evidence, _generalised_pareto_shape

ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {"NumPy": np.asarray, "torch": torch.as_tensor}


@pytest.fixture(params=ARRAYS.values(), ids=ARRAYS)
def array(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_moments_of_the_weights(array: Any) -> None:
    """Against the definitions: ESS = (Σw)² / Σw², SE of log mean = sd(w) / (√S mean(w))."""
    log_weights = np.random.default_rng(0).normal(size=(200, 4))
    result = Evidence(array(log_weights - 1000.0))
    weights = np.exp(log_weights)
    size = weights.sum(0) ** 2 / (weights**2).sum(0)
    np.testing.assert_allclose(result.effective_sample_size, size)
    error = weights.std(0, ddof=1) / (math.sqrt(200) * weights.mean(0))
    np.testing.assert_allclose(result.standard_error, error)
    np.testing.assert_allclose(result.log_evidence, np.log(weights.mean(0)) - 1000.0)
    assert type(result.pareto_k) is type(array(log_weights))


def test_weights_that_are_all_zero_or_nan(array: Any) -> None:
    log_weights = np.random.default_rng(0).normal(size=(100, 3))
    log_weights[:, 0] = -math.inf
    log_weights[7, 1] = math.nan
    result = Evidence(array(log_weights))
    assert result.log_evidence[0] == -math.inf
    assert result.pareto_k[0] == math.inf
    assert math.isnan(result.log_evidence[1])
    assert math.isnan(result.pareto_k[1])
    assert math.isfinite(result.log_evidence[2])
    assert math.isfinite(result.pareto_k[2])


@pytest.mark.parametrize("num_samples", [30, 1000])
def test_pareto_k_is_arvizs(num_samples: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", exc_type=ImportError)
        rng = np.random.default_rng(0)
        log_weights = rng.normal(size=(num_samples, 6)) * np.linspace(0.2, 4.0, 6)
        _, expected = arviz.psislw(log_weights.T)
    result = Evidence(log_weights.reshape(num_samples, 2, 3))
    np.testing.assert_allclose(result.pareto_k, expected.reshape(2, 3), rtol=1e-10)


@pytest.mark.parametrize("size", [5, 30, 1000])
def test_the_shape_of_a_tail_is_pyros(size: int) -> None:
    excess = np.sort(np.random.default_rng(0).pareto(2.0, size=size))
    expected, _ = fit_generalized_pareto(torch.as_tensor(excess))
    assert _generalised_pareto_shape(excess) == pytest.approx(float(expected), rel=1e-10)


def test_pareto_k_of_tails_that_are_too_short_or_flat() -> None:
    log_weights = np.random.default_rng(0).normal(size=(20, 3))
    assert (Evidence(log_weights).pareto_k == math.inf).all()
    equal = np.repeat([[-3.0], [0.0]], [80, 20], axis=0)
    assert Evidence(equal).pareto_k == 0

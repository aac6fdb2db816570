"""A linear-Gaussian program whose evidence is known, and how close an estimate must come."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import multivariate_normal

from tests.halves import Case
from tests.questions.asking import Asking, data
from tests.questions.programs import in_plate

WEIGHT = np.array([[1.0, 0.8], [-0.5, 1.2], [0.9, 0.7]])
NOISE = 0.4
POSTERIOR = np.linalg.inv(np.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2)
FLOW = {"num_steps": 5, "step_size": 0.15, "learn": False}


def linear_gaussian(
    half: Asking, *, num: int = 8, total: int | None = None, guide_scale: float = 1.3, **plate: Any
) -> Case:
    """x_i ~ N(W z_i, 0.4²), z_i ~ N(0, I).

    The posterior is correlated, and the guide has its mean and, enlarged, its marginal scales.
    """
    x, weight = half.array(data(num)), half.array(WEIGHT.T)
    loc = half.array(data(num) @ WEIGHT @ POSTERIOR / NOISE**2)
    scale = half.array(guide_scale * np.sqrt(np.diagonal(POSTERIOR)))

    def model(index: Any) -> None:
        prior = half.dist.Normal(half.xp.zeros_like(loc[index]), 1.0)
        z = half.sample("z", prior.to_event(1))
        half.sample("x", half.dist.Normal(z @ weight, NOISE).to_event(1), obs=x[index])

    def guide(index: Any) -> None:
        half.sample("z", half.dist.Normal(loc[index], scale).to_event(1))

    return Case(*(in_plate(half, total or num, draw, **plate) for draw in (model, guide)))


def exact_evidence(num: int = 8) -> np.ndarray:
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * np.eye(3)
    return np.atleast_1d(multivariate_normal.logpdf(data(num), cov=covariance))


def run(half: Asking, case: Case, **settings: Any) -> Any:
    return half.ask("log_evidence", case, **{"num_samples": 4000, **settings})


def assert_exact(result: Any, exact: Any, *, largest_error: float = 0.1) -> None:
    found, error, exact = map(np.asarray, (result.log_evidence, result.standard_error, exact))
    assert found.shape == exact.shape
    assert (error < largest_error).all(), "too few draws to tell"
    deviation = abs(found - exact) / error
    assert (deviation < 4).all(), deviation

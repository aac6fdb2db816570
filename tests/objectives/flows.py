"""What a flow keeps: its mean weight is the evidence, its gradients are finite differences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.halves import Case, Half, Slope


def log_normal(x: np.ndarray, covariance: np.ndarray) -> float:
    """log N(x; 0, covariance)."""
    _, log_det = np.linalg.slogdet(2 * math.pi * covariance)
    return float(-0.5 * (log_det + x @ np.linalg.solve(covariance, x)))


X = np.array([0.5, -1.0, 1.5])
HIERARCHY = log_normal(X, 2 * np.eye(3) + 1)


def normal_hierarchy(half: Half, *, is_observed: bool = True) -> Any:
    """θ ~ N(0, 1), z_i ~ N(θ, 1), x_i ~ N(z_i, 1), whose evidence is HIERARCHY."""

    def model() -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        with half.plate("data", 3):
            z = half.sample("z", half.dist.Normal(theta, 1.0))
            obs = half.xp.asarray(X) if is_observed else None
            half.sample("x", half.dist.Normal(z, 1.0), obs=obs)

    return model


NEAR = {"theta": np.array(0.25), "z": (X + 0.25) / 2, "z_decentered": (X - 0.25) / 2}
"""Near the hierarchy's posterior, non-centred too, for automatic guides to start from."""


def warm(beta_0: Any, k: int, num_steps: int) -> Any:
    """A schedule of the user's that does not end at 1."""
    return beta_0 + (0.9 - beta_0) * k / num_steps


def flow(half: Half, num_steps: int = 3, step_size: Any = 0.1, **settings: Any) -> Any:
    settings = {"path": "posterior", **settings}
    return half.library.TraceHamiltonian_ELBO(num_steps, step_size, **settings)


def fixed(half: Half, num_steps: int = 3, step_size: Any = 0.15, **settings: Any) -> Any:
    return flow(half, num_steps, step_size, learn=False, **settings)


def annealed(half: Half, num_steps: int = 4, step_size: Any = 0.3, **settings: Any) -> Any:
    """A flow from the guide to the posterior that learns nothing."""
    settings = {"path": "annealed", "learn": False, **settings}
    return flow(half, num_steps, step_size, **settings)


def assert_evidence(
    half: Half, case: Case, exact: float, elbo: Any = None, *, draws: int = 10_000
) -> None:
    """E[w] is the evidence within 4 standard errors, and the ELBO is below it."""
    assert_average(half.log_weights(elbo or fixed(half), case, draws=draws), exact)


def assert_average(log_weights: np.ndarray, exact: float) -> None:
    ratio, root = np.exp(log_weights - exact), math.sqrt(len(log_weights))
    error = ratio.std() / root
    assert error < 0.1, "too few draws to tell"
    assert abs(ratio.mean() - 1) < 4 * error
    assert log_weights.mean() < exact + 4 * log_weights.std() / root


def assert_gradients(half: Half, case: Case, elbo: Any = None) -> dict[str, Slope]:
    """The gradient in every parameter is that of finite differences."""
    slopes = half.slopes(elbo or flow(half), case)
    assert slopes
    for name, (gradient, slope) in slopes.items():
        assert gradient == pytest.approx(slope, rel=1e-6, abs=1e-6), name
    return slopes


class LinearGaussian(NamedTuple):
    case: Case
    evidence: float


def linear_gaussian(half: Half, seed: int) -> LinearGaussian:
    """z ~ N(0, I), x | z ~ N(A z + b, noise), and a bad diagonal guide."""
    rng = np.random.default_rng(seed)
    dim, out = 1 + seed % 4, 2 + seed % 3
    weight, shift, noise = rng.normal(size=(out, dim)), rng.normal(size=out), rng.uniform(0.5, 1.5)
    x = weight @ rng.normal(size=dim) + shift + noise * rng.normal(size=out)
    covariance = weight @ weight.T + noise**2 * np.eye(out)
    precision = np.eye(dim) + weight.T @ weight / noise**2
    mean = np.linalg.solve(precision, weight.T @ (x - shift) / noise**2)
    loc = half.xp.asarray(mean + 0.4 * rng.normal(size=dim))
    scale = np.sqrt(np.diagonal(np.linalg.inv(precision))) * rng.uniform(1.0, 1.4, size=dim)
    scale, weight, seen = (half.xp.asarray(a) for a in (scale, weight, x - shift))

    def model() -> None:
        z = half.sample("z", half.dist.Normal(0 * loc, 1.0).to_event(1))
        half.sample("x", half.dist.Normal(z @ weight.T, noise).to_event(1), obs=seen)

    def guide() -> None:
        half.sample("z", half.dist.Normal(loc, scale).to_event(1))

    return LinearGaussian(Case(model, guide), log_normal(x - shift, covariance))

"""A linear-Gaussian program whose evidence is known, and how close an estimate must come."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

from numpyro_backend._diagnostics.evidence import Evidence, log_evidence
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

WEIGHT = np.array([[1.0, 0.8], [-0.5, 1.2], [0.9, 0.7]])
NOISE = 0.4
POSTERIOR = np.linalg.inv(np.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2)


def linear_gaussian(
    *,
    num: int = 8,
    total: int | None = None,
    batch: int | None = None,
    mask: Any = True,
    guide_scale: float = 1.3,
) -> tuple[Programs, np.ndarray]:
    """x_i ~ N(W z_i, 0.4²), z_i ~ N(0, I): programs, and log p(x_i) of every row.

    The posterior is correlated, and the guide has its mean and, enlarged, its marginal scales.
    """
    x = programs.data(num)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * np.eye(3)
    exact = np.asarray(dist.MultivariateNormal(np.zeros(3), covariance).log_prob(x))

    def plate() -> Any:
        return numpyro.plate("data", total or num, subsample_size=batch)

    def model(x: Array) -> None:
        with plate() as index, handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            rows = jnp.asarray(x)[index]
            numpyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=rows)

    def guide(x: Array) -> None:
        with plate() as index, handlers.mask(mask=mask):
            loc = jnp.asarray(x)[index] @ WEIGHT @ POSTERIOR / NOISE**2
            scale = guide_scale * np.sqrt(np.diagonal(POSTERIOR))
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,)), exact


def run(case: Programs, *, params: dict[str, Any] | None = None, **settings: Any) -> Evidence:
    settings = {"num_samples": 4000, **settings}
    key = jax.random.key(0)
    return log_evidence(key, params or {}, case.model, case.guide, *case.args, **settings)


def assert_exact(result: Evidence, exact: Any, *, largest_error: float = 0.1) -> None:
    assert result.log_evidence.shape == np.shape(exact)
    assert (result.standard_error < largest_error).all(), "too few draws to tell"
    deviation = abs(result.log_evidence - exact) / result.standard_error
    assert (deviation < 4).all(), deviation


FLOW = {"num_steps": 5, "step_size": 0.15, "beta_0": 0.7, "learn": False}

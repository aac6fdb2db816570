"""How much nearer to the posterior the flow brings a guide."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import Predictive, Trace_ELBO
from scipy.optimize import minimize

from numpyro_backend import TraceHamiltonian_ELBO

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_more_steps_close_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal with correlation 0.9 under a diagonal guide, whose own gap is 0.83 nats.

    The log weight is quadratic in the four standard normals of a draw, so that eight points
    with their second moments give its expectation exactly: no noise hides a gap.
    """
    points = 2 * np.concatenate([np.eye(4), -np.eye(4)])
    tril = np.linalg.cholesky(np.array([[1.0, 0.27], [0.27, 0.09]]))

    def model() -> None:
        with numpyro.plate("points", 8):
            numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))

    def guide() -> None:
        scale = numpyro.param("scale", jnp.ones(2))
        with numpyro.plate("points", 8):
            numpyro.sample("z", dist.Normal(jnp.zeros(2), scale).to_event(1))

    monkeypatch.setattr(jax.random, "normal", lambda key, shape: points[:, :2])
    monkeypatch.setattr(
        "numpyro_backend._traces.refined_guide._standard_normal", lambda u: points[:, 2:]
    )
    scale = np.array([1.0, 0.3]) * math.sqrt(1 - 0.9**2)
    run = jax.random.key(0), {"scale": jnp.array(scale)}, model, guide
    gaps = [float(jax.jit(lambda: Trace_ELBO().loss(*run) / 8)())]
    assert gaps[0] == pytest.approx(-0.5 * math.log(1 - 0.9**2))
    step_size, factors = np.empty((0, 2)), np.empty(0)
    for num_steps in (1, 3, 10):
        more = num_steps - len(factors)
        start = {
            "scale": scale,
            "hamiltonian.step_size": np.concatenate([step_size, np.full((more, 2), 0.3)]),
            "hamiltonian.tempering_factors": np.concatenate([factors, np.full(more, 0.99)]),
        }
        elbo = TraceHamiltonian_ELBO(
            num_steps, np.full((num_steps, 2), 0.3), per_step=True, tempering="free"
        )
        flat, unflatten = ravel_pytree(start)
        best = minimize(
            jax.jit(
                jax.value_and_grad(
                    lambda flat, elbo=elbo, unflatten=unflatten: (
                        elbo.loss(jax.random.key(0), unflatten(flat), model, guide) / 8
                    )
                )
            ),
            flat,
            jac=True,
            bounds=[
                (1e-3, 1 - 1e-9 if "factors" in name else 2.0)
                for name, value in sorted(start.items())
                for _ in value.ravel()
            ],
            options={"maxiter": 500},
        )
        gaps.append(float(best.fun))
        end = unflatten(best.x)
        scale, step_size, factors = end["scale"], *(end[name] for name in list(start)[1:])
    assert all(after < before for before, after in itertools.pairwise(gaps))
    assert -1e-9 < gaps[-1] < 0.05 * gaps[0], "a gap below 0 would be no bound"


def test_predictive_moments_are_nearer_to_the_posterior() -> None:
    """A correlated posterior under AutoNormal: the refined guide's covariance is nearer."""
    x = np.array([1.0, 2.0, 0.5])

    def model() -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a + b, 0.5).expand([3]).to_event(1), obs=x)

    truth = np.linalg.inv(np.eye(2) + 12 * np.ones((2, 2)))
    # The best diagonal normal, and a step size that is not the initial one.
    mean, scale = truth.sum(0)[0] * 4 * x.sum(), 13**-0.5

    def guide() -> None:
        for name in "ab":
            numpyro.sample(name, dist.Normal(numpyro.param("mean", 0.0), scale))

    elbo = TraceHamiltonian_ELBO(10, 1e-3, tempering="none")
    params = {"mean": mean, "hamiltonian.step_size": 0.2}
    errors = []
    for posterior in (guide, elbo.refine(model, guide)):
        predictive = Predictive(
            model,
            guide=posterior,
            params=params,
            num_samples=4000,
            parallel=True,
            return_sites=["a", "b"],
        )
        draws = predictive(jax.random.key(1))
        covariance = np.cov(np.stack([draws["a"], draws["b"]]))
        errors.append(np.linalg.norm(covariance - truth) / np.linalg.norm(truth))
    assert errors[1] < 0.5 * errors[0]

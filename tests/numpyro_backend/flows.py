"""What a flow keeps: its mean weight is the evidence, its gradients are finite differences."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from numpyro_backend import TraceHamiltonian_ELBO
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import Params, initial, wrapped


def log_normal(x: np.ndarray, covariance: np.ndarray) -> float:
    """log N(x; 0, covariance)."""
    _, log_det = np.linalg.slogdet(2 * math.pi * covariance)
    return float(-0.5 * (log_det + x @ np.linalg.solve(covariance, x)))


X = np.array([0.5, -1.0, 1.5])
HIERARCHY = log_normal(X, 2 * np.eye(3) + 1)


def normal_hierarchy() -> None:
    """θ ~ N(0, 1), z_i ~ N(θ, 1), x_i ~ N(z_i, 1), whose evidence is HIERARCHY."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(theta, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=X)


def warm(beta_0: Array, k: int, num_steps: int) -> Array:
    """A schedule of the user's that does not end at 1."""
    return beta_0 + (0.9 - beta_0) * k / num_steps


def fixed(num_steps: int = 3, step_size: Any = 0.15, **settings: Any) -> TraceHamiltonian_ELBO:
    return TraceHamiltonian_ELBO(num_steps, step_size, learn=False, **settings)


def log_weights(elbo: TraceHamiltonian_ELBO, case: Programs, *, draws: int) -> np.ndarray:
    """Log importance weights of draws of the whole model."""
    model, guide, args = case
    refined = elbo.refine(model, guide)
    params = initial(wrapped(elbo, case))

    def log_weight(key: Array) -> Array:
        guide_key, model_key = jax.random.split(key)
        seeded = handlers.seed(refined, guide_key)
        guide_terms, trace = compute_log_probs(seeded, args, {}, params)
        replayed = handlers.replay(handlers.seed(model, model_key), trace)
        model_terms, _ = compute_log_probs(replayed, args, {}, params)
        return sum(model_terms.values()) - sum(guide_terms.values())

    keys = jax.random.split(jax.random.key(1), draws)
    return np.asarray(jax.jit(jax.vmap(log_weight))(keys))


def assert_evidence(
    elbo: TraceHamiltonian_ELBO, case: Programs, exact: Any, *, draws: int = 20_000
) -> None:
    """E[w] is the evidence within 4 standard errors, and the ELBO is below it."""
    weights = log_weights(elbo, case, draws=draws)
    ratio = np.exp(weights - float(exact))
    error = ratio.std() / math.sqrt(draws)
    assert error < 0.1, "too few draws to tell"
    assert abs(ratio.mean() - 1) < 4 * error
    assert weights.mean() < float(exact) + 4 * weights.std() / math.sqrt(draws)


def assert_gradients(case: Programs, elbo: Any) -> Params:
    """The gradient in every parameter is that of finite differences."""
    model, guide, args = wrapped(elbo, case)
    params = initial(Programs(model, guide, args))

    @jax.jit
    def step(params: Params) -> Any:
        return jax.value_and_grad(
            lambda params: elbo.loss(jax.random.key(3), params, model, guide, *args)
        )(params)

    _, grads = step(params)
    assert params
    for name, value in params.items():
        leaves, structure = jax.tree.flatten(value)
        directions = [np.linspace(1.0, 2.0, leaf.size).reshape(leaf.shape) for leaf in leaves]
        losses = []
        for shift in (1e-5, -1e-5):
            moved = [leaf + shift * d for leaf, d in zip(leaves, directions, strict=True)]
            losses.append(step({**params, name: structure.unflatten(moved)})[0])
        slope = float(losses[0] - losses[1]) / 2e-5
        along = sum(
            (leaf * d).sum()
            for leaf, d in zip(jax.tree.leaves(grads[name]), directions, strict=True)
        )
        assert float(along) == pytest.approx(slope, rel=1e-6, abs=1e-6), name
    return grads

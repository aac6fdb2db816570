"""The objectives keep the programs' dtype, in single precision too, and promote no rank."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from numpyro_backend.mutual_information import BOUNDS
from tests.halves import Case
from tests.numpyro_backend.half import NUMPYRO
from tests.objectives.critics import keep, recording
from tests.objectives.flows import X
from tests.shared_programs import vae

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def masked_case(dtype: Any) -> Case:
    def program(is_model: bool) -> Any:
        def run(x: Array) -> None:
            loc = 0 * x if is_model else x + numpyro.param("loc", jnp.zeros((6, 2), dtype))
            with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
                z = numpyro.sample("z", dist.Normal(loc, jnp.ones_like(x)).to_event(1))
                if is_model:
                    numpyro.sample("x", dist.Normal(z, jnp.ones_like(x)).to_event(1), obs=x)

        return run

    return Case(program(True), program(False), (jnp.arange(12, dtype=dtype).reshape(6, 2),))


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("penalised", ["unbiased", "closed_form", "shift", "all"])
def test_keep_the_dtype_without_rank_promotion(penalised: str, double: bool) -> None:
    with jax.enable_x64(double), jax.numpy_rank_promotion("raise"):
        dtype = jnp.dtype("float64" if double else "float32")
        if penalised in ("shift", "all"):
            critic = numpyro_backend.ConcatCritic(2, 2, hidden=(8,))
            objective = TraceInfoMax_ELBO(critic, negatives=penalised, num_particles=2)
        else:
            objective = TraceMMD_ELBO(0.5, estimator=penalised, num_particles=2)
        case = masked_case(dtype)
        svi = numpyro_backend.SVI(case.model, case.guide, Adam(1e-2), loss=objective)
        state = jax.eval_shape(svi.init, jax.random.key(0), *case.args)
        after, loss = jax.eval_shape(svi.update, state, *case.args)
        floats = [
            leaf for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        assert {loss.dtype, *(leaf.dtype for leaf in floats)} == {dtype}


@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_flow_keeps_that_of_the_programs(double: bool) -> None:
    """Of a latent without dims too."""
    seen = set()

    def model() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=X)
        seen.update((theta.dtype, z.dtype))

    elbo = TraceHamiltonian_ELBO(3, np.array(0.1), tempering="free", path="posterior")
    with jax.enable_x64(double):
        svi = numpyro_backend.SVI(model, AutoNormal(model), Adam(1e-2), elbo)
        state = jax.eval_shape(svi.init, jax.random.key(0))
        after, loss = jax.eval_shape(svi.update, state)
    assert seen == {loss.dtype} == {jnp.dtype("float64" if double else "float32")}
    assert jax.tree.leaves(after) == jax.tree.leaves(state)


def large() -> Case:
    x = np.random.default_rng(1).normal(size=(60_000, 3)).astype("float32")
    return vae(NUMPYRO, x=x, batch=100)


@pytest.mark.slow
def test_huge_scores_in_single_precision_stay_finite() -> None:
    def score(params: Any, x: Array, z: Array) -> Array:
        return params["factor"] * jnp.sign(x[:, 0]) * (1 + 1e-3 * jnp.tanh(z[:, 0]))

    with jax.enable_x64(False):
        huge = NUMPYRO.critic(score, {"factor": np.array(1e4)})
        objectives = [TraceInfoMax_ELBO(huge, bound=bound) for bound in BOUNDS]
        for loss, grads in NUMPYRO.steps(objectives, large()):
            assert math.isfinite(loss)
            assert all(np.isfinite(grad).all() for grad in grads.values())
            assert {grad.dtype for grad in grads.values()} == {np.dtype("float32")}


def test_single_precision_at_full_scale_keeps_the_codes_exactly() -> None:
    log = list[Any]()
    with jax.enable_x64(False):
        objective = TraceInfoMax_ELBO(recording(NUMPYRO, log), 10.0, regularizer=keep(log))
        (((_, scored), *_, (_, rows)),) = NUMPYRO.seen(log, objective, large())
    assert scored.dtype == np.dtype("float32")
    np.testing.assert_array_equal(scored, rows)

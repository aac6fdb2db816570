"""TraceInfoMax_ELBO in single precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend.mutual_information import BOUNDS
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import CRITIC, concat, observe
from tests.numpyro_backend.steps import seeded, wrapped

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def test_huge_scores_in_single_precision_stay_finite() -> None:
    class Huge:
        def init(self, rng_key: Array) -> Array:
            return jnp.asarray(1e4)

        def bind(self, params: Any) -> Callable[[Array, Array], Array]:
            return lambda x, z: params * jnp.sign(x[:, 0]) * (1 + 1e-3 * jnp.tanh(z[:, 0]))

    model, guide, (x,) = programs.vae(num=60_000, batch=100)
    case = Programs(model, guide, (x.astype("float32"),))
    with jax.enable_x64(False):
        objectives = [TraceInfoMax_ELBO(Huge(), bound=bound) for bound in BOUNDS]
        for loss, grads in seeded(*objectives, case=wrapped(objectives[0], case)):
            assert math.isfinite(loss)
            assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))
            assert {grad.dtype for grad in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_single_precision_at_full_scale_keeps_the_codes_exactly() -> None:
    model, guide, (x,) = programs.vae(num=60_000, batch=100)
    with jax.enable_x64(False):
        case = Programs(model, guide, (x.astype("float32"),))
        seen, _ = observe(concat(), 10.0, case)
        assert seen.calls[0][1].dtype == jnp.float32
        np.testing.assert_array_equal(seen.calls[0][1], seen.rows.values)


@pytest.mark.parametrize("negatives", ["shift", "all"])
@pytest.mark.parametrize("double", [False, True])
def test_keeps_the_dtype_without_rank_promotion(double: bool, negatives: str) -> None:
    def standard() -> dist.Distribution:
        return dist.Normal(jnp.zeros((6, 2)), jnp.ones((6, 2))).to_event(1)

    def model(x: Array) -> None:
        with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
            z = numpyro.sample("z", standard())
            numpyro.sample("x", dist.Normal(z, jnp.ones((6, 2))).to_event(1), obs=x)

    def guide(x: Array) -> None:
        loc = numpyro.param("loc", jnp.zeros((6, 2)))
        with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
            numpyro.sample("z", dist.Normal(loc + x, jnp.ones((6, 2))).to_event(1))

    with jax.enable_x64(double), jax.numpy_rank_promotion("raise"):
        dtype = jnp.dtype("float64" if double else "float32")
        args = jnp.arange(12, dtype=dtype).reshape(6, 2)
        critic = concat(2)
        objective = TraceInfoMax_ELBO(critic, negatives=negatives, num_particles=2)
        params = {
            "loc": jnp.zeros((6, 2), dtype),
            CRITIC: jax.eval_shape(critic.init, jax.random.key(0)),
        }
        shapes = jax.eval_shape(
            lambda key, params: jax.value_and_grad(
                lambda params: objective.loss(key, params, model, guide, args)
            )(params),
            jax.random.key(0),
            params,
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {dtype}

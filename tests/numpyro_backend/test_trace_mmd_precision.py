"""TraceMMD_ELBO keeps the dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend import TraceMMD_ELBO

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_in_single_precision_without_rank_promotion() -> None:
    def standard(shape: tuple[int, ...]) -> dist.Distribution:
        return dist.Normal(jnp.zeros(shape), jnp.ones(shape)).to_event(1)

    def model(x: Array) -> None:
        with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
            z = numpyro.sample("z", standard((6, 2)))
            numpyro.sample("x", dist.Normal(z, jnp.ones((6, 2))).to_event(1), obs=x)

    def guide(x: Array) -> None:
        loc = numpyro.param("loc", jnp.zeros((6, 2)))
        with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
            numpyro.sample("z", dist.Normal(loc + x, jnp.ones((6, 2))).to_event(1))

    args = jnp.arange(12, dtype="float32").reshape(6, 2)
    with jax.enable_x64(False), jax.numpy_rank_promotion("raise"):
        for estimator in ("unbiased", "closed_form"):
            objective = TraceMMD_ELBO(0.5, estimator=estimator, num_particles=2)
            params = {"loc": jnp.zeros((6, 2), "float32")}
            shape = jax.eval_shape(
                lambda key, params, objective=objective: jax.value_and_grad(
                    lambda params: objective.loss(key, params, model, guide, args)
                )(params),
                jax.random.key(0),
                params,
            )
            assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype("float32")}

"""The memory that a gradient of TraceHamiltonian_ELBO takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from numpyro_backend import SVI, TraceHamiltonian_ELBO
from pyro_infovae._core.flow_options import Path
from tests.numpyro_backend.runs import jit
from tests.numpyro_backend.steps import Params

pytestmark = pytest.mark.usefixtures("quick_double_precision")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "arrays"), [("annealed", 24), ("posterior", 6)])
def test_memory_grows_by_latents_where_steps_are_computed_again(path: Path, arrays: int) -> None:
    """The gradient of a VAE (784-256-20, a minibatch of 128): 50 steps against 1.

    Each keeps so many arrays of the size of the latents, and nothing of the network.
    """

    def dense(name: str, sizes: tuple[int, int], inputs: Array) -> Array:
        weight = numpyro.param(f"{name}.weight", jnp.full(sizes, 0.01))
        return inputs @ weight + numpyro.param(f"{name}.bias", jnp.zeros(sizes[1]))

    def model(x: Array) -> None:
        with numpyro.plate("data", 60_000, subsample_size=128):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
            logits = dense("out", (256, 784), jnp.tanh(dense("code", (20, 256), z)))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", 60_000, subsample_size=128):
            hidden = jnp.tanh(dense("hidden", (784, 256), x))
            scale = jnp.exp(dense("log_scale", (256, 20), hidden))
            loc = dense("loc", (256, 20), hidden)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    x, key = np.zeros((128, 784), np.float32), jax.random.key(0)
    memory = []
    for num_steps in (1, 50):
        elbo = TraceHamiltonian_ELBO(num_steps, path=path, checkpoint=True)
        svi = SVI(model, guide, numpyro.optim.Adam(1e-3), elbo)
        params = jax.eval_shape(lambda svi=svi: svi.get_params(svi.init(key, x)))

        def loss(params: Params, svi: SVI = svi, elbo: TraceHamiltonian_ELBO = elbo) -> Array:
            return elbo.loss(key, params, svi.model, svi.guide, x)

        compiled = jit(jax.value_and_grad(loss)).lower(params).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert memory[1] - memory[0] < 49 * arrays * 128 * 20 * 8

"""TraceHamiltonian_ELBO keeps the dtype of the programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoNormal
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO
from tests.numpyro_backend.flows import X


@pytest.mark.parametrize("double", [False, True])
def test_the_programs_dtype_is_kept(double: bool) -> None:
    """Of a latent without dims too."""
    seen = set()

    def model() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=X)
        seen.update((theta.dtype, z.dtype))

    elbo = TraceHamiltonian_ELBO(3, np.array(0.1), tempering="free")
    with jax.enable_x64(double):
        svi = numpyro_backend.SVI(model, AutoNormal(model), Adam(1e-2), elbo)
        state = jax.eval_shape(svi.init, jax.random.key(0))
        after, loss = jax.eval_shape(svi.update, state)
    assert seen == {loss.dtype} == {jnp.dtype("float64" if double else "float32")}
    assert jax.tree.leaves(after) == jax.tree.leaves(state)

"""``SVI.evaluate`` sees the state that training has come to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from numpyro_backend import SVI, TraceHamiltonian_ELBO

ROWS = 40


def model() -> None:
    with numpyro.plate("data", ROWS):
        numpyro.sample("z", dist.Normal(jnp.zeros(ROWS), 1.0))


def guide() -> None:
    loc = numpyro.param("loc", jnp.zeros(ROWS))
    with numpyro.plate("data", ROWS):
        numpyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.slow
def test_steps_are_as_short_as_training_made_them() -> None:
    """A leapfrog of more than two standard deviations has no bound, until its steps shrink."""
    svi = SVI(model, guide, numpyro.optim.Adam(1e-4), TraceHamiltonian_ELBO(8, step_size=2.5))

    def step(state: Any, _: None) -> tuple[Any, Array]:
        return svi.update(state)

    @jax.jit
    def trained(key: Array) -> tuple[Array, Array, Array]:
        start = svi.init(key)
        end, losses = jax.lax.scan(step, start, length=60)
        return losses[0], losses[-1], svi.evaluate(end)

    first, last, after = trained(jax.random.key(0))
    assert first / ROWS > 2.0
    assert abs(last / ROWS) < 0.5
    assert abs(after / ROWS) < 0.5

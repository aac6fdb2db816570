"""What ``SVI`` does with the scale of a flow's steps that training has come to."""

from __future__ import annotations

import warnings
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


def at_the_posterior() -> None:
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))


def flow_of(step_size: float) -> SVI:
    flow = TraceHamiltonian_ELBO(8, step_size)
    return SVI(at_the_posterior, at_the_posterior, numpyro.optim.Adam(1e-4), flow)


def test_a_run_tells_of_harm_at_its_end() -> None:
    with pytest.warns(UserWarning, match="flow's bound is more than a nat per row below") as told:
        flow_of(2.5).run(jax.random.key(0), 30, progress_bar=False)
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow_of(0.05).run(jax.random.key(0), 30, progress_bar=False)

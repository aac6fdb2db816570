"""A flow that diverges does not spoil the training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO
from pyro_infovae._core.flow_options import Path
from tests.numpyro_backend.half import NUMPYRO
from tests.numpyro_backend.runs import jit
from tests.numpyro_backend.steps import Params
from tests.objectives.flows import fixed

pytestmark = pytest.mark.usefixtures("quick_double_precision")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["annealed", "posterior"])
def test_a_divergence_spoils_no_parameter(path: Path) -> None:
    def model() -> None:
        with numpyro.plate("data", 16):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(jnp.exp(3 * z), 1e-3), obs=jnp.ones(16))

    def guide() -> None:
        with numpyro.plate("data", 16):
            numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 1.0))

    elbo = TraceHamiltonian_ELBO(10, 0.4, path=path, max_step_size=5.0)
    svi = numpyro_backend.SVI(model, guide, Adam(1e-2), elbo)

    @jit
    def step() -> tuple[Params, Params, Array]:
        state = svi.init(jax.random.key(0))
        after, loss = svi.update(state)
        return *(svi.optim.get_params(s.optim_state) for s in (state, after)), loss

    before, after, loss = step()
    assert np.isfinite(loss)
    for name, value in after.items():
        assert np.isfinite(value).all(), name
    assert after["loc"] != before["loc"]


def test_a_row_that_diverged_stays_where_it_was_drawn() -> None:
    def model() -> None:
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, jnp.array([1.0, 1e-200])), obs=jnp.ones(2))

    def guide() -> None:
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    @jit
    def draw() -> tuple[Array, Array, Array]:
        site = handlers.trace(handlers.seed(fixed(NUMPYRO).refine(model, guide), 0)).get_trace()[
            "z"
        ]
        start = handlers.trace(handlers.seed(guide, 0)).get_trace()["z"]["value"]
        return start, site["value"], site["fn"].log_prob(site["value"])

    start, end, log_prob = draw()
    assert start[0] != end[0]
    assert start[1] == end[1]
    np.testing.assert_array_equal(np.isposinf(log_prob), [False, True])

"""TraceMMD_ELBO on latents in several stacks of plates."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from numpyro_backend import TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import penalty, seeded

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_each_group_has_its_own_scale() -> None:
    """N is 6 for the groups and 24 for the items; for a point mass at 0 the MMD is known."""

    def guide(x: Array) -> None:
        with numpyro.plate("groups", 6, dim=-1):
            zero = jnp.zeros((6, 2)) * numpyro.param("one", 1.0)
            numpyro.sample("outer", dist.Delta(zero, event_dim=1))
            with numpyro.plate("items", 4, dim=-2):
                numpyro.sample("z", dist.Delta(jnp.zeros((4, 6, 2)) * zero, event_dim=1))

    model, _, args = programs.nested()
    # d=2 and ℓ²=2; the items' prior, N(outer, 1), is the standard normal here as well.
    expected = 1 + 2 / (2 + 2) - 2 * 2 / (2 + 1)
    for sites, total in ((["outer"], 6), (["z"], 24), (None, 6 + 24)):
        objective = TraceMMD_ELBO(0.0, 2.0, sites=sites, estimator="closed_form")
        case = Programs(model, guide, args)
        assert penalty(objective, case) == pytest.approx(total * expected, rel=1e-9)


def test_gradients_are_finite() -> None:
    for case in (programs.nested(), programs.sequences()):
        ((loss, grads),) = seeded(TraceMMD_ELBO(0.5, 10.0, num_particles=3), case=case)
        assert math.isfinite(loss)
        assert all(jnp.isfinite(grad).all() for grad in grads.values())

"""The prefactors of TraceHamiltonian_ELBO weight its terms, and nothing else."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from numpyro.infer.autoguide import AutoNormal

from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import fixed, log_weights, normal_hierarchy
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import initial

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_prefactors_leave_the_refined_guide_alone() -> None:
    """They weight the objective; the refined guide's density is that of its draws."""
    case = Programs(normal_hierarchy, AutoNormal(normal_hierarchy, init_scale=0.8), ())
    plain = fixed()
    weighted = fixed(logp_prefactor=(1.0, 2.0, 2.0), logq_prefactor=(0.5, 1.0, 1.0))
    first, second = (log_weights(elbo, case, draws=3) for elbo in (plain, weighted))
    np.testing.assert_array_equal(first, second)


def test_prefactors_weight_the_terms() -> None:
    """The loss is linear in each prefactor, and the slopes add up to it."""
    model, guide, args = programs.vae(num=5)
    params = initial(programs.vae(num=5))
    factors = [np.ones(6), *(np.ones(6) + np.eye(6)), np.array([0.0, 1, 1, 1, 1, 1])]
    elbos = [
        fixed(logp_prefactor=tuple(f[:3].tolist()), logq_prefactor=tuple(f[3:].tolist()))
        for f in factors
    ]
    run = jax.random.key(0), params, model, guide, *args
    loss, *losses, without = jax.jit(lambda: [elbo.loss(*run) for elbo in elbos])()
    slopes = [float(other - loss) for other in losses]
    assert sum(slopes) == pytest.approx(float(loss), rel=1e-9)
    assert float(without) == pytest.approx(float(loss) - slopes[0], rel=1e-9)
    # log(beta_0 / beta_K) d / 2 for each of 5 data in 2 dimensions.
    assert slopes[5] == pytest.approx(-5 * math.log(0.5), rel=1e-9)

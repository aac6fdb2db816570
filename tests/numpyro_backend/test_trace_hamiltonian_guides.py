"""TraceHamiltonian_ELBO under automatic guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_value

from numpyro_backend import TraceHamiltonian_ELBO
from tests.numpyro_backend.flows import (
    HIERARCHY,
    X,
    assert_evidence,
    assert_gradients,
    fixed,
    normal_hierarchy,
)
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

NEAR = {"v": 1.2, "z": (X + 0.2) / 2}


@pytest.mark.parametrize(
    "auto",
    [AutoNormal, AutoMultivariateNormal],
)
def test_automatic_guides(auto: Callable[..., Any]) -> None:
    """Of a hierarchy with a constrained latent: v = exp θ."""

    def model() -> None:
        v = numpyro.sample("v", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(jnp.log(v), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=X)

    guide = auto(model, init_scale=0.7, init_loc_fn=init_to_value(values=NEAR))
    assert_evidence(fixed(), Programs(model, guide, ()), HIERARCHY)


def test_a_list_of_guides_in_which_one_latent_stays() -> None:
    guide = AutoGuideList(normal_hierarchy)
    guide.append(AutoDelta(handlers.block(normal_hierarchy, hide=["z", "x"])))
    guide.append(AutoNormal(handlers.block(normal_hierarchy, hide=["theta"])))
    elbo = TraceHamiltonian_ELBO(3, sites=["z"])
    grads = assert_gradients(Programs(normal_hierarchy, guide, ()), elbo)
    assert {"theta_auto_loc", "z_auto_loc", "hamiltonian.step_size"} < grads.keys()

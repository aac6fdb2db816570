"""TraceHamiltonian_ELBO under automatic guides, and with latents of the guide's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from torch import Tensor

from tests.pyro_infovae.flows import (
    X,
    assert_bound,
    assert_gradients,
    flow,
    normal_hierarchy,
    trained,
)
from tests.pyro_infovae.programs import Programs

# Guides here are hardly trained; the standard error tells what is known.
pytestmark = pytest.mark.filterwarnings("ignore:log_evidence")


@pytest.mark.parametrize(
    "auto",
    [
        AutoIAFNormal,
        AutoLowRankMultivariateNormal,
        lambda model: AutoStructured(
            model, conditionals={"theta": "normal", "z": "normal"}, dependencies={"z": {}}
        ),
    ],
    ids=["iaf", "low rank", "structured"],
)
def test_automatic_guides(auto: Callable[..., Any]) -> None:
    model, exact = normal_hierarchy()
    case = Programs(model, auto(model), ())
    case.guide()
    assert_gradients(case, elbo=flow(learn=False))
    elbo = trained(case, flow(), steps=60)
    assert_bound(case, exact, elbo=elbo, largest_error=0.2)


def test_a_list_of_guides_in_which_one_latent_stays() -> None:
    model, _ = normal_hierarchy()
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["theta"])))
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    guide()
    assert_gradients(Programs(model, guide, ()), elbo=flow(sites=["z"]))


def test_an_auxiliary_latent_of_the_users() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    def guide() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 0.6), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(2 * w, log_density=torch.tensor(-math.log(2))))

    assert_bound(Programs(model, guide, ()), dist.Normal(0.0, math.sqrt(2)).log_prob(X[0]))


def test_prediction_without_data_says_how() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(weight * x, 0.5), obs=y)

    guide = AutoNormal(model)
    guide(X, 2 * X)
    refined = flow().refine(model, guide)
    with pytest.raises(ValueError, match=r"'y' is a latent of the model.*posterior_samples"):
        Predictive(model, guide=refined, num_samples=3)(X)
    draws = Predictive(model, guide=refined, num_samples=3)(X, 2 * X)
    weights = {"weight": draws["weight"]}
    predicted = Predictive(model, posterior_samples=weights)(torch.zeros(7))
    assert predicted["y"].shape == (3, 7)

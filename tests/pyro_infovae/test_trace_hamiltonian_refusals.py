"""What TraceHamiltonian_ELBO refuses beside tests/refusals.py."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoHierarchicalNormalMessenger,
    AutoLaplaceApproximation,
    AutoNormal,
)
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import flow, normal_hierarchy
from tests.pyro_infovae.programs import Programs


def refused(case: Programs, match: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=match):
        TraceHamiltonian_ELBO(**settings).loss_and_grads(case.model, case.guide, *case.args)


def test_a_global_latent_under_a_subsampled_plate() -> None:
    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index, 0])

    def guide(x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample_size=4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    case = Programs(model, guide, (programs.data(),))
    refused(case, "'theta' is outside plate 'data', which is subsampled.*out of sites")
    assert math.isfinite(TraceHamiltonian_ELBO(sites=["z"]).loss(*case[:2], *case.args))


def test_an_automatic_point_mass() -> None:
    model, _, args = programs.vae()
    for guide in (AutoDelta(model), AutoLaplaceApproximation(model)):
        refused(Programs(model, guide, args), "'z' is a point mass in the guide")


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ({}, {"per_step": True}, r"'hamiltonian.step_size' of shape \(3,\).*shape \(\)"),
        ({"tempering": "free"}, {"num_steps": 5}, r"tempering_factors' of shape \(5,\)"),
    ],
)
def test_two_objectives_of_one_name(first: dict, second: dict, match: str) -> None:
    """The param store keeps the first one's values: 3 learned factors are no 5 steps."""
    model, _ = normal_hierarchy()
    guide = AutoNormal(model)
    TraceHamiltonian_ELBO(**first).loss(model, guide)
    settings = {**first, **second}
    with pytest.raises(ValueError, match=f"{match}.*another name, or clear the param store"):
        TraceHamiltonian_ELBO(**settings).loss(model, guide)
    TraceHamiltonian_ELBO(**settings, name="other").loss(model, guide)


def test_a_latent_of_the_guide_alone() -> None:
    model, _ = normal_hierarchy()

    def guide() -> None:
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'w', which is no latent of the model.*auxiliary"):
        flow().loss(model, guide)
    with pytest.warns(UserWarning, match="non-auxiliary vars in guide but not model"):
        flow(sites=["theta", "z"]).loss(model, guide)


def test_a_latent_that_is_conditioned_in_the_model() -> None:
    model, _ = normal_hierarchy()
    conditioned = poutine.condition(model, data={"theta": torch.tensor(0.1)})
    with pytest.raises(ValueError, match="'theta', which is no latent of the model"):
        flow().loss(conditioned, AutoNormal(model))


def test_no_site() -> None:
    model, _ = normal_hierarchy()
    with pytest.raises(ValueError, match="draws no latent that could flow"):
        flow(sites=[]).loss(model, AutoNormal(model))


def test_a_guide_that_observes() -> None:
    model, _ = normal_hierarchy()
    messenger = AutoHierarchicalNormalMessenger(model)
    with pytest.raises(NotImplementedError, match=r"the guide observes 'x'.*AutoGuide"):
        flow().loss(model, messenger)

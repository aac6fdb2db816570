"""TraceHamiltonian_ELBO on the programs people write: bounds and gradients."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, nn

from tests.pyro_infovae.flows import X, assert_bound, assert_gradients, flow, normal_hierarchy
from tests.pyro_infovae.programs import Programs

# Guides here are hardly trained; the standard error tells what is known.
pytestmark = pytest.mark.filterwarnings("ignore:log_evidence")


def test_a_support_that_depends_on_another_latent() -> None:
    """b ~ Uniform(0, a): the transform of b moves with a, at every step of the flow."""
    x = torch.tensor([0.5, 1.2])

    def model() -> None:
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
            b = pyro.sample("b", dist.Uniform(0.0, a))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        shape = pyro.param("shape", torch.tensor(1.2), constraint=constraints.positive)
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.LogNormal(loc, 0.9))
            stretch = torch.distributions.AffineTransform(0.0, a)
            fraction = dist.Kumaraswamy(shape, shape)
            pyro.sample("b", dist.TransformedDistribution(fraction, [stretch]))

    case = Programs(model, guide, ())
    a = torch.linspace(0.0, 25.0, 5001)[1:, None, None]
    fractions = ((torch.arange(200) + 0.5) / 200)[:, None]
    joint = dist.Gamma(2.0, 1.0).log_prob(a) + dist.Normal(a * (1 + fractions), 1.0).log_prob(x)
    assert_bound(case, (joint.exp().mean(1).sum(0) * 0.005).log())
    assert_gradients(case)


def test_event_dims_of_the_guides_own() -> None:
    """A vector in the model, two scalars in the guide: each Jacobian counts once."""
    x = torch.tensor([0.5, -1.0])

    def model() -> None:
        z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.log(), 1.0).to_event(1), obs=x)

    def guide() -> None:
        pyro.sample("z", dist.LogNormal(torch.tensor([0.3, -0.4]), 0.9))

    pyro.enable_validation(False)  # which asks for a plate around the guide's scalars
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum()
    assert_bound(Programs(model, guide, ()), exact, num_samples=600, chunk_size=1)


def test_a_recurrent_guide() -> None:
    x = torch.tensor([0.3, -0.4, 1.0, 0.2])
    cell, head = nn.GRUCell(1, 3), nn.Linear(4, 1)

    def model() -> None:
        z = torch.zeros(())
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide() -> None:
        pyro.module("cell", cell)
        pyro.module("head", head)
        hidden, z = torch.zeros(1, 3), torch.zeros(())
        for t in range(4):
            hidden = cell(x[t].reshape(1, 1), hidden)
            features = torch.cat([hidden[0].expand(*z.shape, 3), z.unsqueeze(-1)], -1)
            loc = head(features).squeeze(-1)
            z = pyro.sample(f"z_{t}", dist.Normal(loc, 0.9))

    case = Programs(model, guide, ())
    steps = torch.arange(4.0)
    weights = (0.9 ** (steps[:, None] - steps)).tril()
    covariance = weights @ weights.T + torch.eye(4)
    exact = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    assert_bound(case, exact)
    assert_gradients(case)


def test_latents_in_another_order() -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=X)

    def guide() -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", 3):
            b = pyro.sample("b", dist.Normal(slope * X, 1.0))
            pyro.sample("a", dist.Normal(slope * b, 0.8))

    case = Programs(model, guide, ())
    assert_bound(case, dist.Normal(0.0, math.sqrt(3)).log_prob(X))
    assert_gradients(case)


def test_factors_and_deterministic_sites() -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.deterministic("pair", torch.stack([z, z], -1), event_dim=1)
            pyro.factor("x", dist.Normal(z, 1.0).log_prob(X))

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc, 0.9))

    case = Programs(model, guide, ())
    assert_bound(case, dist.Normal(0.0, math.sqrt(2)).log_prob(X))
    assert_gradients(case)
    refined = flow().refine(model, guide)
    draws = Predictive(model, guide=refined, num_samples=5, parallel=True)()
    torch.testing.assert_close(draws["twice"], 2 * draws["z"])


def test_a_partly_observed_site() -> None:
    mask = torch.tensor([True, False, True])

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(theta, 1.0), obs=X, obs_mask=mask)

    def guide() -> None:
        theta = pyro.sample("theta", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.7))
        with pyro.plate("data", 3), poutine.mask(mask=~mask):
            pyro.sample("x_unobserved", dist.Normal(theta, 1.1))

    case = Programs(model, guide, ())
    covariance = torch.ones(2, 2) + torch.eye(2)
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(X[mask])
    assert_bound(case, exact)
    assert_gradients(case)


def test_effect_handlers_around_the_model() -> None:
    model, exact = normal_hierarchy()

    def unconditioned() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    for program in (
        poutine.condition(unconditioned, data={"x": X}),
        poutine.reparam(model, config={"z": LocScaleReparam(0.0)}),
    ):
        pyro.clear_param_store()
        guide = AutoNormal(program, init_scale=0.8)
        guide()
        assert_bound(Programs(program, guide, ()), exact, num_samples=40_000)
        assert_gradients(Programs(program, guide, ()))


def test_a_scale_of_the_users() -> None:
    """Annealing of the KL: at a step of 0 the stock ELBO's loss, beyond it its own gradient."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 10, subsample=torch.arange(3)):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", 10, subsample=torch.arange(3)), poutine.scale(scale=0.3):
            pyro.sample("z", dist.Normal(loc, 0.8))

    case = Programs(model, guide, (X,))
    still = flow(step_size=0.0, tempering="none", learn=False)
    losses = []
    for objective in (Trace_ELBO(), still):
        pyro.set_rng_seed(0)
        losses.append(objective.loss(model, guide, X))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert_gradients(case)

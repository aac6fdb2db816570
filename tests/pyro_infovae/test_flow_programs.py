"""What of a flow is special to Pyro: its modules' and guides' ways, and gradients of the tape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from torch import Tensor, nn

from tests.halves import Case
from tests.objectives import flows
from tests.objectives.flows import HIERARCHY, assert_evidence, assert_gradients
from tests.pyro_infovae import programs
from tests.pyro_infovae.half import PYRO

X = torch.tensor(flows.X)


def flow(**settings: Any) -> Any:
    return flows.flow(PYRO, **{"beta_0": 0.7, **settings})


@pytest.mark.slow
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
    model = flows.normal_hierarchy(PYRO)
    case = Case(model, PYRO.prepared(auto(model)))
    assert_gradients(PYRO, case, flow(learn=False))
    elbo = flow()
    PYRO.trained(elbo, case, steps=60, lr=0.05)
    assert_evidence(PYRO, case, HIERARCHY, elbo, draws=40_000)


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
            z = pyro.sample(f"z_{t}", dist.Normal(head(features).squeeze(-1), 0.9))

    steps = np.arange(4.0)
    weights = np.tril(0.9 ** (steps[:, None] - steps))
    case = Case(model, guide)
    assert_evidence(PYRO, case, flows.log_normal(x.numpy(), weights @ weights.T + np.eye(4)))
    assert_gradients(PYRO, case)


class TestPrediction:
    def test_deterministic_sites_are_those_of_the_refined_draws(self) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.factor("x", dist.Normal(z, 1.0).log_prob(X[0]))

        def guide() -> None:
            pyro.sample("z", dist.Normal(0.0, 0.9))

        refined = flow().refine(model, guide)
        draws = Predictive(model, guide=refined, num_samples=5, parallel=True)()
        torch.testing.assert_close(draws["twice"], 2 * draws["z"])

    @pytest.mark.slow
    def test_moments_are_nearer_to_the_posterior(self) -> None:
        """A correlated posterior under its best diagonal normal: the covariance is nearer."""
        x = torch.tensor([1.0, 2.0, 0.5])
        truth = (torch.eye(2) + 12 * torch.ones(2, 2)).inverse()

        def model() -> None:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            loc = (a + b).unsqueeze(-1) * torch.ones(3)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

        def guide() -> None:
            for name in "ab":
                pyro.sample(name, dist.Normal(4 * truth.sum(0)[0] * x.sum(), 13**-0.5))

        elbo = flows.fixed(PYRO, 10, 0.2, tempering="none")
        errors = []
        for posterior in (guide, elbo.refine(model, guide)):
            for parallel, num in ((False, 100), (True, 4000)):
                predictive = Predictive(model, guide=posterior, num_samples=num, parallel=parallel)
                draws = predictive()
                sample = torch.stack([draws["a"].reshape(-1), draws["b"].reshape(-1)])
                assert sample.shape == (2, num)
            errors.append(float((sample.cov() - truth).norm() / truth.norm()))
        assert errors[1] < 0.5 * errors[0]

    def test_without_data_says_how(self) -> None:
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


class TestGradients:
    def test_of_what_reaches_the_programs_from_outside(self) -> None:
        """Weights computed before the objective, and an encoding that the guide hands over."""
        x, box = programs.data(3), {}

        def model(weight: Tensor) -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(box["code"], 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ weight, 0.5).to_event(1), obs=x)

        def guide(weight: Tensor) -> None:
            box["code"] = x @ weight.T
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(box["code"], 0.5).to_event(1))

        elbo = flow(learn=False)

        def loss(weight: Tensor) -> Tensor:
            pyro.set_rng_seed(0)
            return elbo.differentiable_loss(model, guide, weight.tanh())

        weight = programs.data(2, 3, seed=2).requires_grad_()
        assert torch.autograd.gradcheck(loss, (weight,), check_undefined_grad=False)

    def test_of_a_discrete_latent_that_stays_are_the_score_functions(self) -> None:
        def model() -> None:
            y = pyro.sample("y", dist.Bernoulli(0.4))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

        def guide() -> None:
            y = pyro.sample("y", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))
            pyro.sample("z", dist.Normal(0.5 * y, 0.7))

        particles = {"num_particles": 20_000, "vectorize_particles": True, "max_plate_nesting": 0}
        elbo = flow(sites="z", learn=False, **particles)
        elbo.loss_and_grads(model, guide)
        gradient = pyro.get_param_store()._params["logit"].grad.item()
        losses = []
        for y in (0.0, 1.0):
            known = poutine.condition(model, data={"y": torch.tensor(y)})
            draw = poutine.block(poutine.condition(guide, data={"y": torch.tensor(y)}), hide=["y"])
            losses.append(flow(learn=False, **particles).loss(known, draw))
        q = torch.sigmoid(torch.tensor(0.2)).item()
        exact = q * (1 - q) * (losses[1] - losses[0] + math.log(q / (1 - q)))
        assert gradient == pytest.approx(exact, abs=0.03)

    def test_refuse_other_parameters_in_backward_than_in_forward(self) -> None:
        """They would be differentiated in place of those that made the loss."""
        model = flows.normal_hierarchy(PYRO)

        def guide() -> None:
            scale = pyro.param("scale", torch.tensor(0.7))
            pyro.sample("theta", dist.Normal(0.0, scale))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(0.0, scale))

        def weighted() -> None:
            pyro.factor("bonus", pyro.param("weight", torch.tensor(0.5)) * X.sum())
            model()

        with pyro.get_param_store().scope():
            loss = flow(checkpoint=True).differentiable_loss(weighted, guide)
        with pytest.raises(RuntimeError, match="parameters of forward"):
            loss.backward()

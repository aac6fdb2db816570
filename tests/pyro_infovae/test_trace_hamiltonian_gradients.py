"""The gradients of TraceHamiltonian_ELBO."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import X, flow, normal_hierarchy, warm
from tests.pyro_infovae.steps import PARTICLES, seeded


# Particles in a loop draw their momenta in between, so the stock ELBO draws others.
@pytest.mark.parametrize("particles", [PARTICLES["one"], PARTICLES["vectorised"]])
def test_a_step_of_zero_is_the_stock_elbo(particles: dict) -> None:
    case = programs.two_latents()
    ours = TraceHamiltonian_ELBO(3, 0.0, tempering="none", learn=False, **particles)
    expected, expected_grads = seeded(Trace_ELBO(**particles), case)
    loss, grads = seeded(ours, case)
    assert loss == pytest.approx(expected, rel=1e-6)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("tempering", ["quadratic", "free", "constant", warm])
def test_equal_finite_differences(tempering: Any, per_step: bool) -> None:
    case = programs.vae(num=6)
    objective = TraceHamiltonian_ELBO(
        3,
        torch.tensor([[0.1, 0.2]] * 3 if per_step else 0.1),
        per_step=per_step,
        tempering=tempering,
    )
    _, grads = seeded(objective, case)
    temperature = {"free": "hamiltonian.tempering_factors"}.get(
        str(tempering), "hamiltonian.beta_0"
    )
    assert grads.keys() == {"encoder", "scale", "decoder", "hamiltonian.step_size", temperature}
    store = pyro.get_param_store()
    for name, grad in grads.items():
        parameter = store._params[name]
        direction = torch.ones_like(parameter) + torch.arange(parameter.numel()).reshape(
            parameter.shape
        )
        losses = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += shift * direction
            pyro.set_rng_seed(3)
            losses.append(objective.loss(case.model, case.guide, *case.args))
            with torch.no_grad():
                parameter -= shift * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert (grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_reach_a_latent_that_stays() -> None:
    """θ is drawn by the guide and conditions the flow of z: its gradient runs through both."""
    case = programs.hierarchical(num=4)
    objective = TraceHamiltonian_ELBO(3, 0.2, sites="z", learn=False)
    _, grads = seeded(objective, case)
    store = pyro.get_param_store()
    losses = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            store._params["theta_loc"] += shift
        pyro.set_rng_seed(3)
        losses.append(objective.loss(case.model, case.guide, *case.args))
        with torch.no_grad():
            store._params["theta_loc"] -= shift
    assert grads["theta_loc"].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_what_reaches_the_programs_from_outside_has_gradients() -> None:
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


def test_a_discrete_latent_that_stays_has_the_score_function_gradient() -> None:
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


def test_other_parameters_in_backward_than_in_forward() -> None:
    """They would be differentiated in place of those that made the loss."""
    model, _ = normal_hierarchy()

    def guide() -> None:
        scale = pyro.param("scale", torch.tensor(0.7))
        pyro.sample("theta", dist.Normal(0.0, scale))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, scale))

    def weighted() -> None:
        pyro.factor("bonus", pyro.param("weight", torch.tensor(0.5)) * X.sum())
        model()

    with pyro.get_param_store().scope():
        loss = flow().differentiable_loss(weighted, guide)
    with pytest.raises(RuntimeError, match="parameters of forward"):
        loss.backward()

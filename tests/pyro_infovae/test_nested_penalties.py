"""Penalties over penalties over a flow: one evaluation, one backward pass, one guard."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor
from torch.testing import assert_close

from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO

ROWS = 70


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((3 * z).exp(), 0.01).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0 * x + loc, 0.4).to_event(1))


def critic() -> ConcatCritic:
    return ConcatCritic(2, 2, (8,))


def diverging() -> ELBO:
    return TraceHamiltonian_ELBO(60, 40.0, max_step_size=50.0, path="posterior")


def unstable() -> ELBO:
    """A flow of which some rows diverge."""
    return TraceHamiltonian_ELBO(3, 0.4, path="posterior")


@pytest.mark.parametrize("flow", [diverging, unstable])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_flow_that_diverges_spoils_no_gradient_at_any_depth(levels: int, flow: Any) -> None:
    elbo = flow()
    for level in range(levels):
        elbo = (
            TraceInfoMax_ELBO(critic(), name=f"critic{level}", base=elbo)
            if level % 2 == 0
            else TraceMMD_ELBO(base=elbo)
        )
    x = torch.randn(ROWS, 2)
    pyro.enable_validation(False)
    with pytest.warns(UserWarning, match=r"the flow of 'z' diverged in \d+ of 70 rows"):
        assert math.isfinite(elbo.loss_and_grads(model, guide, x))
    gradients = {n: p.grad for n, p in pyro.get_param_store()._params.items()}
    assert "hamiltonian.step_size" in gradients
    for name, gradient in gradients.items():
        assert gradient is None or gradient.isfinite().all(), name


class OwnStep(Trace_ELBO):
    """Overrides the step alone, as a user's ELBO may: its loss is that of Pyro, doubled."""

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        loss = 2.0 * self.differentiable_loss(*args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)
        return loss.item()


@pytest.mark.parametrize(
    "make_base",
    [
        Trace_ELBO,
        OwnStep,
        TraceGraph_ELBO,
        lambda: RenyiELBO(alpha=0.5, num_particles=3),
        lambda: TraceMMD_ELBO(0.2, 3.0, base=TraceGraph_ELBO()),
    ],
    ids=["Trace", "own step", "TraceGraph", "Renyi", "nested"],
)
@pytest.mark.filterwarnings("ignore:TraceMMD_ELBO estimates")
def test_the_gradient_is_that_of_the_base_and_that_of_the_penalty(make_base: Any) -> None:
    """Whether the base has a differentiable loss or only a step of its own."""
    x = torch.randn(ROWS, 2).exp()

    def regularizer(rows: Any) -> Tensor:
        return 7.0 * rows.values.sum()

    def step(elbo: ELBO) -> tuple[float, Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        loss = elbo.loss_and_grads(model, guide, x)
        return loss, pyro.get_param_store()._params["loc"].grad

    with pytest.warns(UserWarning, match="a weight of alpha"):
        alone, with_penalty = (
            TraceMMD_ELBO(0.0, 1.0, regularizer=own, base=make_base())
            for own in (None, regularizer)
        )
    stock_loss, stock_grad = step(make_base())
    loss, grad = step(alone)
    assert loss == pytest.approx(stock_loss, rel=1e-12)
    assert_close(grad, stock_grad, rtol=1e-12, atol=1e-12)
    penalised_loss, penalised_grad = step(with_penalty)
    assert math.isfinite(penalised_loss)
    draws = make_base().num_particles * ROWS
    assert_close(penalised_grad - grad, torch.full((2,), 7.0 * draws))


@pytest.mark.parametrize("base", [TraceGraph_ELBO, lambda: RenyiELBO(num_particles=2)])
def test_every_base_has_a_differentiable_loss_under_a_penalty(base: Any) -> None:
    x = torch.randn(ROWS, 2).exp()
    elbo = TraceMMD_ELBO(lambd=3.0, base=base())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=elbo)
    pyro.set_rng_seed(2)
    loss = svi.evaluate_loss(x)
    pyro.set_rng_seed(2)
    tensor = elbo.differentiable_loss(model, guide, x)
    assert tensor.requires_grad
    assert tensor.item() == pytest.approx(loss, rel=1e-12)

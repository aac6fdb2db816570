"""What is wrong before a flow starts is not put down to its step size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_infovae import TraceHamiltonian_ELBO


@pytest.fixture(autouse=True)
def unvalidated(clean_pyro: None) -> None:
    pyro.enable_validation(False)


X = np.array([0.3, -0.2, 1.0, 0.5])


def gradients(elbo: Any, model: Any, guide: Any) -> dict[str, torch.Tensor]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo.loss_and_grads(model, guide)
    return {name: p.grad for name, p in pyro.get_param_store()._params.items()}


def normal(x: torch.Tensor, *, mask: torch.Tensor | None = None) -> tuple[Any, Any]:
    def model() -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            likelihood = dist.Normal(z, 0.5, validate_args=False)
            pyro.sample("x", likelihood if mask is None else likelihood.mask(mask), obs=x)

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return model, guide


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_are_not_finite(value: float) -> None:
    x = torch.tensor(X).index_fill(0, torch.tensor([2]), value)
    with pytest.warns(UserWarning, match="site 'x' observes nan or infinity in 1 of 4 values"):
        TraceHamiltonian_ELBO().loss_and_grads(*normal(x))


def test_masked_nan_is_told_and_the_remedy_works() -> None:
    x = torch.tensor(X).index_fill(0, torch.tensor([2]), math.nan)
    mask = ~x.isnan()
    with pytest.warns(UserWarning, match=r"'x' observes nan .*torch.nan_to_num.*is left out"):
        assert math.isfinite(TraceHamiltonian_ELBO().loss_and_grads(*normal(x, mask=mask)))
    filled = gradients(TraceHamiltonian_ELBO(), *normal(x.nan_to_num(), mask=mask))
    assert filled["loc"].isfinite()
    assert filled["loc"] != 0


def test_a_density_that_is_not_finite() -> None:
    def model() -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            scale = torch.tensor([1.0, math.nan, 1.0, 1.0])
            pyro.sample("x", dist.Normal(z, scale, validate_args=False), obs=torch.tensor(X))

    with pytest.warns(UserWarning, match=r"density of 'x' is not finite in 1 of 4 rows, whatever"):
        TraceHamiltonian_ELBO().loss_and_grads(model, normal(torch.tensor(X))[1])


def test_a_start_without_a_force() -> None:
    """The square root's slope at 0 is infinite: the loss is finite."""

    def model() -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + (0 * z).sqrt(), 1.0), obs=torch.tensor(X))

    with pytest.warns(UserWarning, match=r"no finite gradient in 'z'.*4 of 4 rows.*square root"):
        TraceHamiltonian_ELBO().loss_and_grads(model, normal(torch.tensor(X))[1])


def test_draws_on_the_edge_of_their_support_train_as_under_the_stock_elbo() -> None:
    """Sparse Dirichlet draws in float32 hold zeros; no step size is small enough for those."""
    torch.set_default_dtype(torch.float32)
    concentration = torch.tensor([[0.003, 0.003, 0.003, 1.0], [5.0, 5.0, 5.0, 5.0]])
    counts = torch.tensor([[0.0, 0.0, 0.0, 9.0], [2.0, 3.0, 3.0, 1.0]])

    def model(_: Any = None) -> None:
        with pyro.plate("data", 2):
            theta = pyro.sample("theta", dist.Dirichlet(torch.full((4,), 0.5)))
            pyro.sample("x", dist.Multinomial(9, theta, validate_args=False), obs=counts)

    def guide(_: Any = None) -> None:
        factor = pyro.param("factor", torch.ones(2, 1))
        with pyro.plate("data", 2):
            pyro.sample("theta", dist.Dirichlet(factor * concentration))

    message = r"draws 'theta' on the edge of its support in 1 of 2 rows.*use float64"
    with pytest.warns(UserWarning, match=message):
        ours = gradients(TraceHamiltonian_ELBO(step_size=0.02), model, guide)
    stock = gradients(Trace_ELBO(), model, guide)
    assert (ours["hamiltonian.step_size_theta"] != 0).all()
    torch.testing.assert_close(ours["factor"][0], stock["factor"][0], rtol=1e-3, atol=1e-3)
    assert ours["factor"][1] != pytest.approx(float(stock["factor"][1]), rel=1e-3)

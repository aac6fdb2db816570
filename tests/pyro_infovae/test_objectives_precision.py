"""The objectives keep the programs' dtype, in single precision too, and wait for no value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_infovae import TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.mutual_information import BOUNDS
from tests.objectives.critics import keep, recording
from tests.objectives.flows import X
from tests.pyro_infovae import programs
from tests.pyro_infovae.half import PYRO
from tests.shared_programs import critic

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def infomax(**settings: Any) -> TraceInfoMax_ELBO:
    return TraceInfoMax_ELBO(critic(PYRO).to(torch.get_default_dtype()), **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        TraceMMD_ELBO,
        infomax,
        lambda: TraceHamiltonian_ELBO(2, torch.tensor([0.1, 0.2], dtype=torch.float64)),
    ],
    ids=["mmd", "infomax", "hamiltonian"],
)
def test_the_loss_keeps_the_dtype(make: Callable[[], Any], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model, guide, (x,) = programs.vae()
    assert make().differentiable_loss(model, guide, x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_keeps_that_of_the_programs(dtype: torch.dtype, default: torch.dtype) -> None:
    """Of a latent without dims too, which a 0-dim number of another dtype would change."""
    torch.set_default_dtype(default)
    x, one, seen = torch.tensor(X, dtype=dtype), torch.ones((), dtype=dtype), set()

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(0 * one, one))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(theta, one))
            pyro.sample("x", dist.Normal(z, one), obs=x)
        seen.update((theta.dtype, z.dtype))

    def guide() -> None:
        theta = pyro.sample("theta", dist.Normal(pyro.param("loc", 0 * one), one))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(theta, one))

    loss = TraceHamiltonian_ELBO(3, 0.1, beta_0=0.7, path="posterior").differentiable_loss(
        model, guide
    )
    loss.backward()
    assert seen == {dtype}
    assert loss.dtype == dtype


@pytest.mark.parametrize("bound", BOUNDS)
def test_huge_scores_in_single_precision_stay_finite(bound: str) -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(1e4))

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.factor * torch.sign(x[:, 0]) * (1 + 1e-3 * torch.tanh(z[:, 0]))

    torch.set_default_dtype(torch.float32)
    model, guide, (x,) = programs.vae(num=60_000, batch=100)
    loss = TraceInfoMax_ELBO(Huge(), bound=bound).loss_and_grads(model, guide, x.float())
    assert math.isfinite(loss)
    grads = [value.grad for value in pyro.get_param_store()._params.values()]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_single_precision_at_full_scale_keeps_the_codes_exactly() -> None:
    torch.set_default_dtype(torch.float32)
    scored, rows = list[Any](), list[Any]()
    shown = recording(PYRO, scored).float()
    model, guide, (x,) = programs.vae(num=60_000, batch=100)
    objective = TraceInfoMax_ELBO(shown, 10.0, regularizer=keep(rows))
    objective.loss_and_grads(model, guide, x.float())
    assert np.array_equal(scored[0][1].detach(), rows[0][1].detach())


class NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    """The host may not wait for a value of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host waits for a value")
        return func(*args, **(kwargs or {}))


WITHOUT_WAITING: dict[str, Callable[[], Any]] = {
    "mmd": lambda: TraceMMD_ELBO(0.3),
    "mmd, particles": lambda: TraceMMD_ELBO(0.3, base=Trace_ELBO(num_particles=2)),
    "mmd, closed form": lambda: TraceMMD_ELBO(0.3, estimator="closed_form"),
    "infomax": infomax,
    "infomax, all": lambda: infomax(negatives="all"),
    "infomax, particles": lambda: infomax(num_particles=3, vectorize_particles=True),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("make", WITHOUT_WAITING.values(), ids=WITHOUT_WAITING)
def test_differentiable_loss_does_not_wait_for_the_device(
    make: Callable[[], Any], masked: bool
) -> None:
    model, guide, args = programs.masked_vae() if masked else programs.vae(num=20, batch=7)
    pyro.enable_validation(False)
    objective = make()
    objective.differentiable_loss(model, guide, *args)
    with NoSync():
        loss = objective.differentiable_loss(model, guide, *args)
    assert loss.requires_grad

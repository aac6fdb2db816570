"""What cannot be replayed is refused by name, rather than replayed wrongly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from tests.pyro_infovae.programs import vae

X = torch.linspace(-1.0, 1.0, 6)
Likelihood = Callable[[Tensor], Any]


def steps(locate: Likelihood, *, num: int = 3, x: Any = X) -> None:
    """Steps of a model of one global location, whose data it shifts."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(locate(z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))

    svi = CompiledSVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(num):
        svi.step(x)


def make(**kwargs: Any) -> CompiledSVI:
    arguments = {"optim": Adam({}), "loss": Trace_ELBO(), **kwargs}
    return CompiledSVI(lambda: None, lambda: None, **arguments)


@pytest.mark.parametrize("loss", [TraceGraph_ELBO(), RenyiELBO(), lambda model, guide: 0.0])
def test_losses_without_a_tensor(loss: Any) -> None:
    name = type(loss).__name__
    with pytest.raises(TypeError, match=rf"a differentiable_loss, such as .*; got {name}: train"):
        make(loss=loss)


def test_bases_without_a_tensor() -> None:
    model, guide, args = vae()
    svi = CompiledSVI(model, guide, Adam({}), TraceMMD_ELBO(base=RenyiELBO(num_particles=2)))
    svi.step(*args)
    with pytest.raises(NotImplementedError, match="RenyiELBO has no differentiable_loss"):
        svi.step(*args)


def test_optimisers_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"PyroOptim, or a function of parameters .*; got dict"):
        make(optim={"lr": 0.01})


def test_losses_of_several_processes() -> None:
    with pytest.raises(ValueError, match=r"one process; got TraceMMD_ELBO\(gather=True\), whose"):
        make(loss=TraceMMD_ELBO(gather=True))


def test_backends_that_are_unknown() -> None:
    with pytest.raises(ValueError, match="backend to be None or 'inductor'; got 'jit'"):
        make(backend="jit")


def test_arguments_that_may_change() -> None:
    with pytest.raises(TypeError, match="numbers, strings and modules; got ndarray, whose"):
        steps(lambda z: z, x=np.zeros(6))


def test_arguments_that_require_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"got a tensor of shape \(6,\) that does: declare it"):
        steps(lambda z: z, x=X.clone().requires_grad_())


DATA_DEPENDENT: dict[str, Likelihood] = {
    "item": lambda z: torch.as_tensor(z.item()),
    "bool": lambda z: z if z > 0 else -z,
    "of a parameter": lambda z: z if pyro.param("loc") > 0 else -z,
    "shape": lambda z: z + X[z < X].sum(),
}


@pytest.mark.parametrize("locate", DATA_DEPENDENT.values(), ids=DATA_DEPENDENT)
def test_courses_that_depend_on_numbers(locate: Likelihood) -> None:
    with pytest.raises(
        NotImplementedError,
        match=r"depend on the numbers in its tensors; got one that does, at .*refusals.py:\d+: ",
    ):
        steps(locate)


def test_what_no_graph_can_hold() -> None:
    with pytest.raises(RuntimeError, match="is not supported for tensor subclasses") as raised:
        steps(lambda z: torch.as_tensor(z.detach().numpy()))
    assert "train with pyro.infer.SVI" in raised.value.__notes__[0]


def test_draws_of_other_generators() -> None:
    random.seed(0)
    with pytest.raises(RuntimeError, match=r"another value of the gradient of 'loc': a program"):
        steps(lambda z: z * random.random())


def test_values_that_are_another_in_every_run() -> None:
    count = iter(range(100))
    with pytest.raises(RuntimeError, match=r"another value of the loss: a program that draws"):
        steps(lambda z: z.detach() * 0 + next(count))


def test_gradients_that_are_lost() -> None:
    runs = iter(range(100))

    def locate(z: Tensor) -> Tensor:
        shift = pyro.param("shift", torch.tensor(0.1))
        return z + (shift if next(runs) < 2 else shift.detach())

    with pytest.raises(
        RuntimeError, match=r"parameter 'shift' in the captured step where Pyro's has one; Pyro's"
    ):
        steps(locate)


def test_tensors_that_are_written_into() -> None:
    total = torch.zeros(())

    def locate(z: Tensor) -> Tensor:
        total.add_(1.0)
        return z + total.detach() * 0

    with pytest.raises(NotImplementedError, match=r"into a tensor of shape \(\) from elsewhere: "):
        steps(locate)


class Averaged(nn.Module):
    """A module whose buffer is replaced by one of another value outside of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.mean = self.mean + random.random()
        return z


def test_buffers_that_take_another_value() -> None:
    with pytest.raises(RuntimeError, match=r"another value of buffer Averaged.mean: a program"):
        steps(Averaged())


def test_a_refused_step_leaves_no_gradient() -> None:
    with pytest.raises(NotImplementedError):
        steps(DATA_DEPENDENT["bool"])
    assert pyro.get_param_store()._params["loc"].grad is None


def test_vanishing_gradients_are_not_refused_for_their_rounding() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0), obs=loc)

    loc = torch.tensor(0.1)
    svi = CompiledSVI(model, lambda: None, Adam({}), Trace_ELBO())
    assert [svi.step() for _ in range(3)] == pytest.approx([0.9189385332046727] * 3)

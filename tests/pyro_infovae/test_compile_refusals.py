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


def steps(locate: Likelihood, *, x: Any = X, loss: Any = None) -> None:
    """Steps of a model of one global location, whose data it shifts."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(locate(z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))

    svi = CompiledSVI(model, guide, Adam({"lr": 0.01}), loss or Trace_ELBO())
    for _ in range(3):
        svi.step(x)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        *(
            ({"loss": loss}, TypeError, rf"as .*; got {type(loss).__name__}: train")
            for loss in (TraceGraph_ELBO(), RenyiELBO(), lambda model, guide: 0.0)
        ),
        (
            {"loss": TraceMMD_ELBO(gather=True)},
            ValueError,
            r"one process; got TraceMMD_ELBO\(gather=True\), whose",
        ),
        (
            {"optim": {"lr": 0.01}},
            TypeError,
            r"PyroOptim, or a function of parameters .*; got dict",
        ),
        ({"backend": "jit"}, ValueError, "backend to be None or 'inductor'; got 'jit'"),
    ],
)
def test_arguments_that_are_not_for_it(
    argument: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CompiledSVI(
            lambda: None, lambda: None, **{"optim": Adam({}), "loss": Trace_ELBO(), **argument}
        )


def test_bases_without_a_tensor() -> None:
    loss = TraceMMD_ELBO(base=TraceMMD_ELBO(base=RenyiELBO(num_particles=2)))
    with pytest.raises(TypeError, match=r"has a differentiable_loss.*got RenyiELBO"):
        CompiledSVI(*vae()[:2], Adam({}), loss)


def test_data_that_may_change() -> None:
    with pytest.raises(TypeError, match=r"got args\[0\] of type ndarray, .*: pass torch.as_tensor"):
        steps(lambda z: z, x=np.zeros(6))


def test_data_that_require_a_gradient() -> None:
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
    assert pyro.get_param_store()._params["loc"].grad is None


class ReadingNumbers(Trace_ELBO):
    """In the manner of ``TraceCausalEffect_ELBO``, whose loss takes a number from each site."""

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        _, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        return surrogate.item(), surrogate


@pytest.mark.parametrize("objective", ["own", "causal effect"])
def test_an_objective_that_reads_numbers_is_named(objective: str) -> None:
    if objective == "own":
        loss, name = ReadingNumbers(), "ReadingNumbers"
    else:
        cevae = pytest.importorskip("pyro.contrib.cevae")
        loss, name = cevae.TraceCausalEffect_ELBO(), "TraceCausalEffect_ELBO"
    with pytest.raises(NotImplementedError, match=rf"\.py:\d+ of {name}: compute with"):
        steps(lambda z: z, loss=loss)


def test_what_no_graph_can_hold() -> None:
    with pytest.raises(RuntimeError, match="is not supported for tensor subclasses") as raised:
        steps(lambda z: torch.as_tensor(z.detach().numpy()))
    assert "train with pyro.infer.SVI" in raised.value.__notes__[0]


class Counting(nn.Module):
    """What is another value in every run: a number, a tensor, a parameter, a buffer."""

    def __init__(self, what: str) -> None:
        super().__init__()
        random.seed(0)
        self.what, self.run = what, iter(range(100))
        self.total = [torch.zeros(())]
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        if self.what == "factor":
            return z * random.random()
        if self.what == "constant":
            return z.detach() * 0 + next(self.run)
        if self.what == "parameter":
            shift = pyro.param("shift", torch.tensor(0.1))
            return z + (shift if next(self.run) < 2 else shift.detach())
        if self.what == "tensor":
            return z + self.total[0].add_(1.0).detach() * 0
        self.mean = self.mean + random.random()
        return z


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("factor", RuntimeError, r"another value of the gradient of 'loc': a program"),
        ("constant", RuntimeError, r"another value of the loss: a program that draws"),
        (
            "parameter",
            RuntimeError,
            r"parameter 'shift' in the captured step where Pyro's has one; Pyro's has one: a",
        ),
        ("tensor", NotImplementedError, r"into a tensor of shape \(\) from elsewhere: "),
        ("buffer", RuntimeError, r"another value of buffer Counting.mean: a program"),
    ],
)
def test_what_is_another_in_every_run(what: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        steps(Counting(what))


def test_vanishing_gradients_are_not_refused_for_their_rounding() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0), obs=loc)

    loc = torch.tensor(0.1)
    svi = CompiledSVI(model, lambda: None, Adam({}), Trace_ELBO())
    assert [svi.step() for _ in range(3)] == pytest.approx([0.9189385332046727] * 3)

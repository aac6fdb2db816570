"""What a message recommends is taken."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from tests.halves import Case, Half
from tests.shared_programs import X, critic

DATA = torch.linspace(-1.0, 1.0, 6)


@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
def test_data_for_a_critic_that_finds_none(half: Half) -> None:
    """The data are a factor: there is no observed site."""

    def model(x: Any) -> None:
        with half.plate("data", 12):
            z = half.sample("z", half.dist.Normal(0 * x[:, :2], 1.0).to_event(1))
            half.factor("likelihood", -((x - z.sum(-1)[:, None]) ** 2).sum(-1))

    def guide(x: Any) -> None:
        with half.plate("data", 12):
            loc = half.param("loc", np.zeros(2))
            half.sample("z", half.dist.Normal(x[:, :2] + loc, 1.0).to_event(1))

    case = Case(model, guide, (half.xp.asarray(X),))
    elbo = half.library.TraceInfoMax_ELBO
    with pytest.raises(ValueError, match="got none: pass data= a function of the model's arg"):
        half.evaluate(elbo(critic(half)), case)
    (step,) = half.steps([elbo(critic(half), data=lambda x: x)], case)
    assert np.isfinite(step.loss)
    assert np.abs(step.grads["critic.x_weight"]).max() > 0


def test_a_sequential_plate_becomes_a_vectorised_one() -> None:
    def one_by_one() -> None:
        for i in pyro.plate("data", 6):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    def together() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))

    with pytest.raises(ValueError, match="in plate 'data' are drawn one by one: use a vectorised"):
        TraceMMD_ELBO().loss(one_by_one, one_by_one)
    assert np.isfinite(TraceMMD_ELBO().loss(together, together))


def model(x: Tensor, args: Any) -> None:
    scale = args["scale"] if isinstance(args, dict) else args.scale
    z = pyro.sample("z", dist.Normal(0.0, scale))
    with pyro.plate("data", 6):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, args: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))


def test_a_namespace_becomes_a_dict() -> None:
    args = Namespace(scale=2.0)
    svi = CompiledSVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    message = r"got kwargs\['args'\] of type Namespace, .*: pass what model and guide need of it"
    with pytest.raises(TypeError, match=message):
        svi.step(DATA, args=args)
    losses = [svi.step(DATA, args=vars(args)) for _ in range(3)]
    assert np.isfinite(losses).all()


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
    svi = CompiledSVI(model, guide, Adam({"lr": 0.01}), loss)
    svi.step(DATA, {"scale": 2.0})
    with pytest.raises(NotImplementedError, match=rf"\.py:\d+ of {name}: compute with"):
        svi.step(DATA, {"scale": 2.0})

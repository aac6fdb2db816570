"""TraceMMD_ELBO over other ELBOs than the default one."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.kernels import IMQ, RBF
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import BASES, CASES, PARTICLES, penalty, seeded


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("base", BASES.keys())
def test_reproduces_the_base(base: str, case: Programs, particles: dict) -> None:
    stock = BASES[base](**particles)
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        ours = TraceMMD_ELBO(alpha=0.0, lambd=1.0, base=BASES[base](**particles))
    expected, expected_grads = seeded(stock, case)
    loss, grads = seeded(ours, case)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert grads.keys() == expected_grads.keys()
    assert grads
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-6, atol=1e-12)
    pyro.set_rng_seed(3)
    value = ours.loss(case.model, case.guide, *case.args)
    pyro.set_rng_seed(3)
    assert value == pytest.approx(stock.loss(case.model, case.guide, *case.args), rel=1e-6)


def test_default_base_samples_the_kl_where_the_order_differs() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Normal(pyro.param("m", torch.tensor(0.3)), 1.0))
        pyro.sample("a", dist.Normal(b.mean(), 1.0))

    case = Programs(model, guide, (torch.arange(4.0),))
    with pytest.warns(UserWarning, match="weight"):
        ours = TraceMMD_ELBO(0.0, 1.0)
    assert seeded(ours, case)[0] == pytest.approx(seeded(Trace_ELBO(), case)[0], rel=1e-12)


def test_a_base_without_differentiable_loss_says_so() -> None:
    case = programs.vae()
    objective = TraceMMD_ELBO(base=TraceGraph_ELBO())
    with pytest.raises(NotImplementedError, match="TraceGraph_ELBO has no differentiable_loss"):
        objective.differentiable_loss(case.model, case.guide, *case.args)


@pytest.mark.parametrize(
    "base",
    [TraceGraph_ELBO(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)],
)
def test_the_penalty_reaches_the_gradient_over_any_base(base: ELBO) -> None:
    case = programs.vae()
    expected_loss, expected = seeded(TraceMMD_ELBO(0.3, 9.0, base=Trace_ELBO()), case)
    loss, grads = seeded(TraceMMD_ELBO(0.3, 9.0, base=base), case)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name])


def test_composes_with_itself() -> None:
    case = programs.vae()
    inner = TraceMMD_ELBO(0.0, 3.0, RBF(1.0), estimator="closed_form")
    outer = TraceMMD_ELBO(0.0, 5.0, IMQ(), base=inner)
    pyro.set_rng_seed(0)
    total = outer.loss(case.model, case.guide, *case.args)
    pyro.set_rng_seed(0)
    value = TraceMMD_ELBO(0.0, 5.0, IMQ()).loss(case.model, case.guide, *case.args)
    assert total - value == pytest.approx(penalty(inner, case, seed=0), rel=1e-9)

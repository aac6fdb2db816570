"""TraceInfoMax_ELBO over other ELBOs than the default one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae import TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.rows import Rows
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording
from tests.pyro_infovae.steps import BASES, CASES, PARTICLES, penalty, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def recording(case: Programs) -> Recording:
    return Recording(z_dim=1 if case is CASES["hierarchical"] else 2)


def _infomax(base: ELBO) -> ELBO:
    return TraceInfoMax_ELBO(Recording(), 0.3, base=base)


def _mmd(base: ELBO) -> ELBO:
    return TraceMMD_ELBO(0.0, 9.0, base=base)


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("base", BASES.keys())
def test_reproduces_the_base(base: str, case: Programs, particles: dict) -> None:
    stock = BASES[base](**particles)
    kept = BASES[base](**particles)
    ours = TraceInfoMax_ELBO(recording(case), 0.0, 1.0, sites=["z"], base=kept)
    expected, expected_grads = seeded(stock, case)
    loss, grads = seeded(ours, case)
    assert loss == pytest.approx(expected, rel=1e-6)
    critics = {name for name in grads if name.startswith("critic$$$")}
    assert grads.keys() - critics == expected_grads.keys()
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-6, atol=1e-12)
    assert all(grads[name].abs().max() > 0 for name in critics)
    assert len(critics) == 4


def test_scores_beyond_every_bound_do_not_reach_the_guide() -> None:
    class Infinite(nn.Module):
        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return z.sum(1) * math.inf

    case = CASES["plain"]
    expected = seeded(Trace_ELBO(), case)[1]
    pyro.enable_validation(False)
    ours = TraceInfoMax_ELBO(Infinite(), 0.0, base=Trace_ELBO())
    with pytest.warns(UserWarning, match="Encountered NaN"):
        grads = seeded(ours, case)[1]
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad)


@pytest.mark.parametrize(
    "base",
    [TraceGraph_ELBO(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)],
)
def test_the_penalty_reaches_the_gradient_over_any_base(base: ELBO) -> None:
    case = CASES["plain"]
    loss, expected = seeded(TraceInfoMax_ELBO(Recording(), 0.3, base=Trace_ELBO()), case)
    value, grads = seeded(TraceInfoMax_ELBO(Recording(), 0.3, base=base), case)
    assert value == pytest.approx(loss, rel=1e-9)
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad)


@pytest.mark.parametrize("particles", [PARTICLES["three"], PARTICLES["vectorised"]])
@pytest.mark.parametrize("objective", [_infomax, _mmd])
def test_a_base_that_frees_its_graph(objective: Callable[[ELBO], ELBO], particles: dict) -> None:
    """Its gradient and the penalty's add up, whatever the base."""
    case = CASES["plain"]
    grads = {
        (name, base): seeded(wrap(base(max_plate_nesting=1, **particles)), case)[1]
        for base in (Trace_ELBO, RenyiELBO)
        for name, wrap in (("stock", lambda base: base), ("ours", objective))
    }
    added = {
        base: {name: grads["ours", base][name] - grad for name, grad in stock.items()}
        for base, stock in ((base, grads["stock", base]) for base in (Trace_ELBO, RenyiELBO))
    }
    for name, grad in added[Trace_ELBO].items():
        torch.testing.assert_close(added[RenyiELBO][name], grad)
    assert added[RenyiELBO]["encoder"].abs().max() > 0


def test_the_graph_is_kept_where_the_base_keeps_it() -> None:
    case, kept = CASES["plain"], list[Tensor]()

    def regularizer(rows: Rows) -> Tensor:
        kept.append(rows.values.square().sum())
        return kept[0]

    for base in (Trace_ELBO(retain_graph=True), TraceGraph_ELBO(retain_graph=True)):
        kept.clear()
        objective = TraceInfoMax_ELBO(Recording(), regularizer=regularizer, base=base)
        objective.loss_and_grads(case.model, case.guide, *case.args)
        kept[0].backward()


def test_composes_with_the_other_penalised_objective() -> None:
    case = programs.vae()
    inner = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form")
    both = TraceInfoMax_ELBO(Recording(), 0.7, base=inner)
    loss, grads = seeded(both, case)
    alone, alone_grads = seeded(TraceInfoMax_ELBO(Recording(), 0.7), case)
    _, stock = seeded(inner.base, case)
    _, mmd = seeded(inner, case)
    assert loss - alone == pytest.approx(penalty(inner, case, seed=3), rel=1e-9)
    for name in ("encoder", "scale"):
        expected = alone_grads[name] + mmd[name] - stock[name]
        torch.testing.assert_close(grads[name], expected)

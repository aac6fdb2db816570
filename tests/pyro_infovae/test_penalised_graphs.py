"""Penalised objectives over bases that run backward themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae import TraceInfoMax_ELBO, TraceMMD_ELBO
from tests.elbo_suite import LOOPED, VECTORISED
from tests.pyro_infovae.half import PYRO
from tests.shared_programs import critic, vae

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


@pytest.mark.parametrize("particles", [LOOPED, VECTORISED], ids=["looped", "vectorised"])
@pytest.mark.parametrize("penalised", ["infomax", "mmd"])
def test_a_base_that_frees_its_graph(penalised: str, particles: dict[str, Any]) -> None:
    """Its gradient and the penalty's add up, whatever the base."""

    def over(base: ELBO) -> ELBO:
        if penalised == "mmd":
            return TraceMMD_ELBO(0.0, 9.0, base=base)
        return TraceInfoMax_ELBO(critic(PYRO), 0.3, base=base)

    added = []
    for base in (Trace_ELBO, RenyiELBO):
        bases = (base(max_plate_nesting=1, **particles) for _ in range(2))
        stock, ours = PYRO.steps([next(bases), over(next(bases))], vae(PYRO))
        added.append({name: ours.grads[name] - grad for name, grad in stock.grads.items()})
    for name, grad in added[0].items():
        np.testing.assert_allclose(added[1][name], grad, rtol=1e-7, atol=1e-7)
    assert np.abs(added[1]["encoder"]).max() > 0


@pytest.mark.parametrize("base", [Trace_ELBO, TraceGraph_ELBO])
def test_the_graph_is_kept_where_the_base_keeps_it(base: type[ELBO]) -> None:
    kept = list[Tensor]()

    def regularizer(rows: Any) -> Tensor:
        kept.append(rows.values.square().sum())
        return kept[0]

    stock = base(retain_graph=True)
    PYRO.evaluate(TraceInfoMax_ELBO(critic(PYRO), regularizer=regularizer, base=stock), vae(PYRO))
    kept[0].backward()

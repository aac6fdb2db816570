"""What ``pyro.clear_param_store()`` resets, and what an objective holds by itself."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO
from pyro_infovae._objectives.objective import Objective
from tests.pyro_infovae.half import PYRO
from tests.shared_programs import vae


def infomax() -> Objective:
    torch.manual_seed(1)
    return TraceInfoMax_ELBO(ConcatCritic(3, 2, hidden=(4,)))


@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
@pytest.mark.parametrize("make", [infomax, TraceHamiltonian_ELBO])
def test_a_new_objective_starts_afresh_and_the_same_one_goes_on(
    make: Callable[[], Objective],
) -> None:
    def after_a_step(objective: Objective, *, lr: float) -> dict[str, torch.Tensor]:
        case = vae(PYRO)
        svi = SVI(case.model, case.guide, pyro.optim.Adam({"lr": lr}), loss=objective)
        svi.step(*case.args)
        names = "encoder", "scale", "decoder", "prior_loc"
        values = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
        return {name: value for name, value in values.items() if name not in names}

    objective = make()
    start = after_a_step(objective, lr=0.0)
    trained = after_a_step(objective, lr=0.1)
    pyro.clear_param_store()
    goes_on = after_a_step(objective, lr=0.0)
    pyro.clear_param_store()
    afresh = after_a_step(make(), lr=0.0)
    torch.testing.assert_close(goes_on, trained)
    torch.testing.assert_close(afresh, start)
    assert any(not torch.equal(trained[name], start[name]) for name in start)

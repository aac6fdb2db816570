"""The critic's parameters: where TraceInfoMax_ELBO keeps them, and who trains them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_infovae import (
    ConcatCritic,
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.training import Decoder, Encoder, losses_of_module

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def _critic(width: int = 8) -> ConcatCritic:
    return ConcatCritic(3, 2, hidden=(width,), activation=nn.Tanh)


def _params_after(case: Programs, *, steps: int, lr: Callable[[str], float]) -> dict[str, Tensor]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective = TraceInfoMax_ELBO(_critic())
    svi = SVI(
        case.model, case.guide, pyro.optim.Adam(lambda name: {"lr": lr(name)}), loss=objective
    )
    for _ in range(steps):
        svi.step(*case.args)
    svi.evaluate_loss(*case.args)
    return {name: value.detach() for name, value in pyro.get_param_store().items()}


@pytest.mark.parametrize("frozen", ["critic", "guide"])
def test_each_parameter_has_its_own_learning_rate(frozen: str) -> None:
    case = programs.vae()
    start = {n: g.clone() for n, g in _params_after(case, steps=0, lr=lambda name: 0.0).items()}

    def settings(name: str) -> dict[str, float]:
        return {"lr": 0.0 if name.startswith("critic.") == (frozen == "critic") else 1e-2}

    end = _params_after(case, steps=3, lr=lambda name: settings(name)["lr"])
    assert start.keys() == end.keys()
    for name, value in end.items():
        stays = name.startswith("critic$$$") == (frozen == "critic")
        assert torch.equal(value, start[name]) == stays, name


@pytest.mark.parametrize("negatives", ["shift", "all"])
def test_as_a_module_with_a_torch_optimiser(negatives: str) -> None:
    x = programs.data(64)
    critic = SeparableCritic(3, 2, hidden=(8,))
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    with pyro.settings.context(module_local_params=True):
        module = TraceInfoMax_ELBO(critic, negatives=negatives)(Decoder(), Encoder())
        assert {id(p) for p in critic.parameters()} <= {id(p) for p in module.parameters()}
        assert len(list(module.parameters())) == 7 + len(before)
        losses = losses_of_module(module, x, steps=60)
    assert sum(losses[-10:]) < sum(losses[:10])
    pairs = zip(critic.parameters(), before, strict=True)
    assert all(not torch.equal(now, then) for now, then in pairs)
    assert not list(pyro.get_param_store())
    assert any(name.startswith("critic.") for name in module.state_dict())


def test_as_a_module_below_and_above_other_objectives() -> None:
    x = programs.data(64)
    with pyro.settings.context(module_local_params=True):
        critic = SeparableCritic(3, 2, hidden=(8,))
        over = TraceMMD_ELBO(base=TraceInfoMax_ELBO(critic))(Decoder(), Encoder())
        over(x).backward()
        flow = TraceHamiltonian_ELBO(num_steps=2)
        below = TraceInfoMax_ELBO(critic, base=flow)(Decoder(), Encoder())
        below(x).backward()
    learned = {id(parameter) for parameter in critic.parameters()}
    assert learned < {id(parameter) for parameter in over.parameters()}
    learned |= {id(parameter) for parameter in flow.flow.parameters()}
    assert learned < {id(parameter) for parameter in below.parameters()}
    assert all(parameter.grad is not None for parameter in over.parameters())
    assert not list(pyro.get_param_store())


def test_an_earlier_critic_of_another_shape() -> None:
    case = programs.vae()
    TraceInfoMax_ELBO(_critic()).loss(case.model, case.guide, *case.args)
    wider = TraceInfoMax_ELBO(_critic(9))
    with pytest.raises(
        ValueError,
        match=r"'critic\$\$\$first.weight' of shape \(9, 5\) in the param store; got "
        r"\(8, 5\) of an earlier critic: pyro.clear_param_store\(\), or pass another name=",
    ):
        wider.loss(case.model, case.guide, *case.args)
    elsewhere = TraceInfoMax_ELBO(_critic(9), name="other")
    assert math.isfinite(elsewhere.loss(case.model, case.guide, *case.args))

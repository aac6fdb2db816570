"""The two gradients of TraceInfoMax_ELBO: the critic's, and the model's and guide's."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae import TraceInfoMax_ELBO
from pyro_infovae.mutual_information import MutualInformationEstimate, nwj
from tests.pyro_infovae import programs
from tests.pyro_infovae.recording import Recording
from tests.pyro_infovae.steps import CASES, PARTICLES, penalty, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("case", ["plain", "subsampled", "masked"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"negatives": "all"}, {"bound": "dv"}, {"bound": "infonce", "negatives": "all"}],
    ids=["nwj", "nwj all", "dv", "infonce all"],
)
def test_equal_finite_differences(settings: dict, case: str, particles: dict) -> None:
    """Those of the whole loss for model and guide; over N alpha for the critic."""
    program = CASES[case]
    objective = TraceInfoMax_ELBO(
        Recording(), 0.6, 0.8, base=Trace_ELBO(max_plate_nesting=1, **particles), **settings
    )
    _, grads = seeded(objective, program)
    total = len(program.args[0])
    for name, grad in grads.items():
        value = pyro.get_param_store()._params[name]
        direction = torch.randn_like(value)
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                value.add_(step * direction)
            pyro.set_rng_seed(3)
            losses.append(objective.loss(program.model, program.guide, *program.args))
            with torch.no_grad():
                value.sub_(step * direction)
        slope = (losses[0] - losses[1]) / 2e-5
        factor = 0.6 * total if name.startswith("critic") else 1.0
        assert float((grad * direction).sum()) * factor == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 300.0])
@pytest.mark.parametrize("num", [12, 600])
def test_the_critic_ascends_the_estimate_itself(alpha: float, num: int) -> None:
    critic = Recording()
    case = programs.vae(num=num, batch=12)
    _, grads = seeded(TraceInfoMax_ELBO(critic, alpha), case)
    (x, z), (same_x, other) = critic.calls
    assert torch.equal(x, same_x)
    assert sum(torch.equal(other, z.roll(s, 0)) for s in range(1, 12)) == 1
    copied = copy.deepcopy(critic.critic)
    copied.zero_grad()
    ((copied(x, other) - 1).exp().mean() - copied(x, z).mean()).backward()
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(grads[f"critic$$$critic.{name}"], parameter.grad)


def test_the_guide_feels_the_surrogate_and_the_loss_the_estimate() -> None:
    def bound(joint: Tensor, marginal: Tensor, **weights: Any) -> MutualInformationEstimate:
        return MutualInformationEstimate(joint.new_tensor(5.0), nwj(joint, marginal).surrogate)

    case = CASES["plain"]
    _, expected = seeded(TraceInfoMax_ELBO(Recording(), 0.5), case)
    objective = TraceInfoMax_ELBO(Recording(), 0.5, bound=bound)
    _, grads = seeded(objective, case)
    assert penalty(objective, case, seed=0) == pytest.approx(-12 * 0.5 * 5.0)
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad)

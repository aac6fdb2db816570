"""Which codes TraceInfoMax_ELBO shows the critic as another datum's."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae import TraceInfoMax_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording
from tests.pyro_infovae.steps import PARTICLES, penalty, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def scattered(*, num: int = 12, batch: int | None = None) -> Programs:
    """z holds noise and a global latent, by which the particle of a code can be told."""
    x = torch.arange(float(num))[:, None].expand(num, 3)

    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num, subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(theta[..., None], torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, True), torch.ones(3)).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))
        with pyro.plate("data", num, subsample_size=batch) as index:
            noise = torch.tensor([1.0, 1e-9])
            loc = torch.stack(torch.broadcast_tensors(x[index, 0], theta), -1)
            pyro.sample("z", dist.Normal(loc, noise).to_event(1))

    return Programs(model, guide, (x,))


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("batch", [None, 5])
def test_are_codes_of_other_data_of_the_same_particle(batch: int | None, particles: dict) -> None:
    critic, case = Recording(), scattered(batch=batch)
    objective = TraceInfoMax_ELBO(critic, **particles)
    for seed in range(30):
        critic.calls.clear()
        pyro.set_rng_seed(seed)
        objective.loss(case.model, case.guide, *case.args)
        (x, own), (same_x, other) = critic.calls
        assert len(own) == (batch or 12) * particles.get("num_particles", 1)
        assert torch.equal(x, same_x)
        matches = (other[:, None] == own).all(-1)
        torch.testing.assert_close(matches.sum(1), torch.ones(len(own), dtype=torch.long))
        source = matches.long().argmax(1)
        assert (x[source, 0] != x[:, 0]).all(), "a negative is another datum's"
        torch.testing.assert_close(own[source, 1], own[:, 1], rtol=0, atol=1e-7)
        jumps = own[:, 1].sort().values.diff() > 1e-7
        assert jumps.sum() == particles.get("num_particles", 1) - 1


def test_every_other_datum_is_met_equally_often() -> None:
    critic, case = Recording(), scattered()
    objective = TraceInfoMax_ELBO(critic)
    offsets = torch.zeros(12)
    for seed in range(300):
        critic.calls.clear()
        pyro.set_rng_seed(seed)
        objective.loss(case.model, case.guide, *case.args)
        (x, own), (_, other) = critic.calls
        source = (other[0] == own).all(-1).long().argmax()
        offsets[int(x[source, 0] - x[0, 0]) % 12] += 1
    assert offsets[0] == 0
    chi_squared = ((offsets[1:] - 300 / 11) ** 2 / (300 / 11)).sum()
    assert chi_squared < 10 + 4 * math.sqrt(2 * 10)


@pytest.mark.parametrize("case", [programs.masked_vae(), programs.sequences()])
@pytest.mark.parametrize("negatives", ["shift", "all"])
@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
def test_masked_data_may_be_anything(case: Programs, negatives: str, particles: dict) -> None:
    model, guide, (x,) = case
    objective = TraceInfoMax_ELBO(Recording(), negatives=negatives, **particles)
    seeded(objective, case)
    masked = x.new_zeros(x.shape[:-1])
    masked[tuple([slice(None, None, 3)] if x.dim() == 2 else [4, slice(1, None)])] = 1.0
    values = [
        penalty(objective, Programs(model, guide, (x + far * masked[..., None],)), seed=5)
        for far in (0.0, 1e6)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    moved = penalty(objective, Programs(model, guide, (x + 1 - masked[..., None],)), seed=5)
    assert values[0] != pytest.approx(moved)


def test_where_all_is_masked_nothing_can_be_told() -> None:
    model, guide, args = programs.vae()
    case = Programs(pyro.poutine.mask(model, False), pyro.poutine.mask(guide, False), args)
    loss, grads = seeded(TraceInfoMax_ELBO(Recording(), 3.0), case)
    assert loss == 0
    assert all(grad.abs().max() == 0 for grad in grads.values())

"""Which data TraceInfoMax_ELBO shows the critic."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording
from tests.pyro_infovae.steps import PARTICLES, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def denoising(*, num: int = 20, batch: int | None = None) -> Programs:
    """Takes x_in, and is to give x_out back."""

    def model(x_in: Tensor, x_out: Tensor) -> None:
        with pyro.plate("data", num, subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x_out[index])

    def guide(x_in: Tensor, x_out: Tensor) -> None:
        with pyro.plate("data", num, subsample_size=batch) as index:
            scale = pyro.param("scale", torch.tensor(1e-9), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(x_in[index, :2], scale).to_event(1))

    x = programs.data(num)
    return Programs(model, guide, (x, x.sum(-1)))


def _two_observed() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for name in ("left", "right"):
                pyro.sample(name, dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    return Programs(model, programs.vae().guide, (programs.data(),))


def _unobserved() -> Programs:
    """The only observation is outside the plate; a factor and a deterministic are no data."""

    def model(x: Tensor) -> None:
        pyro.sample("sum", dist.Normal(0.0, 1.0), obs=x.sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("factor", z.sum(-1))
            pyro.deterministic("copy", z, event_dim=1)

    return Programs(model, programs.vae().guide, (programs.data(),))


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("batch", [None, 7])
def test_a_function_of_the_arguments_goes_with_the_minibatch(
    batch: int | None, particles: dict
) -> None:
    """The guide copies x_in to z, so that each row of the data can be told by its code."""
    case, critic = denoising(batch=batch), Recording()
    objective = TraceInfoMax_ELBO(critic, data=lambda x_in, x_out: x_in, **particles)
    objective.loss(case.model, case.guide, case.args[0], x_out=case.args[1])
    x, z = critic.calls[0]
    assert len(x) == (batch or 20) * particles.get("num_particles", 1)
    torch.testing.assert_close(x[:, :2], z, rtol=0, atol=1e-6)


def test_a_function_may_give_the_minibatch_itself() -> None:
    case, critic = denoising(batch=7), Recording(x_dim=1)
    minibatch = torch.arange(7.0)
    objective = TraceInfoMax_ELBO(critic, data=lambda *args: minibatch)
    objective.loss(case.model, case.guide, *case.args)
    assert torch.equal(critic.calls[0][0], minibatch)


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
def test_nested_plates_of_which_one_is_subsampled(particles: dict) -> None:
    x = programs.data(24).reshape(4, 6, 3)

    def model(x: Tensor) -> None:
        groups = pyro.plate("groups", 6, subsample_size=5, dim=-1)
        with groups as index, pyro.plate("items", 4, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, index, 2])

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1e-9))
        groups = pyro.plate("groups", 6, subsample_size=5, dim=-1)
        with groups as index, pyro.plate("items", 4, dim=-2):
            pyro.sample("z", dist.Normal(x[:, index, :2], scale).to_event(1))

    for source in ("x", lambda x: x):
        pyro.clear_param_store()
        critic = Recording(x_dim=1 if source == "x" else 3)
        TraceInfoMax_ELBO(critic, data=source, **particles).loss(model, guide, x)
        seen, z = critic.calls[0]
        assert len(seen) == 20 * particles.get("num_particles", 1)
        found = (z[:, None] - x[..., :2].reshape(24, 2)).abs().sum(-1).argmin(1)
        expected = x[..., 2].flatten() if source == "x" else x.reshape(24, 3)
        assert torch.equal(seen, expected[found])


def test_images_keep_their_shape() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 4, 3, stride=2)
            self.shapes: set[tuple[int, ...]] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.shapes.add(tuple(x.shape))
            return self.convolution(x).relu().flatten(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 16):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], 1, 8, 8)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 16):
            weight = pyro.param("weight", torch.ones(2))
            pyro.sample("z", dist.Normal(weight * x.mean((-3, -2, -1))[:, None], 1.0).to_event(1))

    encoder = Images()
    critic = ConcatCritic(x_dim=36, z_dim=2, hidden=(8,), x_encoder=encoder)
    case = Programs(model, guide, (torch.rand(16, 1, 8, 8).round(),))
    for settings in PARTICLES.values():
        _, grads = seeded(TraceInfoMax_ELBO(critic, **settings), case)
        assert grads["critic$$$x_encoder.convolution.weight"].abs().max() > 0
    assert encoder.shapes == {(16, 1, 8, 8), (48, 1, 8, 8)}


@pytest.mark.parametrize("settings", [{"data": "right"}, {"data": lambda x: x[:, 0]}])
def test_naming_the_data_settles_which(settings: dict) -> None:
    case = _two_observed()
    critic = Recording(x_dim=1)
    TraceInfoMax_ELBO(critic, **settings).loss(case.model, case.guide, *case.args)
    assert torch.equal(critic.calls[0][0], case.args[0][:, 0])


def test_factors_and_deterministic_values_are_no_data() -> None:
    case = _unobserved()
    with pytest.raises(ValueError, match=r"Expected one observed site .*; got \[\]: pass data="):
        TraceInfoMax_ELBO(Recording()).loss(case.model, case.guide, *case.args)

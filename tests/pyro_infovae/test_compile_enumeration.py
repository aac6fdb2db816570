"""CompiledSVI over TraceEnum_ELBO, whose discrete latents are summed out."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae import SeparableCritic, TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from tests.pyro_infovae.compiled_steps import adam, same_as_svi
from tests.pyro_infovae.programs import Programs, mixture

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def in_guide() -> Programs:
    model, guide, args = mixture(learned_prior=True)
    return Programs(model, config_enumerate(guide, "parallel"), args)


def in_model() -> Programs:
    return mixture(learned_prior=True, enumerate_in_model=True)


def base(*, particles: int = 1) -> ELBO:
    return TraceEnum_ELBO(
        max_plate_nesting=1, num_particles=particles, vectorize_particles=particles > 1
    )


def information() -> ELBO:
    torch.manual_seed(1)
    critic = SeparableCritic(x_dim=1, z_dim=1, hidden=(5,), embed_dim=3)
    return TraceInfoMax_ELBO(critic, 0.7, base=base())


OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "alone": base,
    "several particles": lambda: base(particles=3),
    "MMD": lambda: TraceMMD_ELBO(0.0, 20.0, base=base()),
    "MMD of several particles": lambda: TraceMMD_ELBO(0.0, 20.0, base=base(particles=3)),
    "InfoMax": information,
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("program", [in_guide, in_model])
def test_steps_are_those_of_svi(program: Callable[[], Programs], objective: str) -> None:
    model, guide, (x,) = program()
    guide_runs: list[int] = []

    def counted(x: Tensor) -> None:
        guide_runs.append(1)
        guide(x)

    def run(svi: type) -> list[float]:
        steps = svi(model, counted, adam(), OBJECTIVES[objective]())
        steps.step(x)
        losses = [steps.step(x)]
        before = len(guide_runs)
        losses += [steps.step(x) for _ in range(5)]
        assert (len(guide_runs) > before) == (svi is not CompiledSVI)
        return losses

    losses = same_as_svi(run)
    assert len(set(losses)) == len(losses)


def test_values_of_probability_zero_count_for_nothing() -> None:
    model, _, (x,) = mixture(learned_prior=True)
    guide_runs: list[int] = []

    @config_enumerate
    def guide(x: Tensor) -> None:
        guide_runs.append(1)
        with pyro.plate("data", len(x)):
            weight = pyro.param("weight", torch.tensor(0.8))
            impossible = torch.full_like(x[:, 0], -torch.inf)
            logits = torch.stack([weight * x[:, 0], 0 * x[:, 0], impossible], -1)
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(weight * x[:, 0] + y - 1, 0.4))

    def run(svi: type) -> list[float]:
        guide_runs.clear()
        steps = svi(model, guide, adam(), base())
        losses = [steps.step(x) for _ in range(10)]
        assert len(guide_runs) == (3 if svi is CompiledSVI else 10)
        return losses

    assert torch.tensor(same_as_svi(run)).isfinite().all()

"""TraceInfoMax_ELBO in single precision, and without waiting for a value."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_infovae import TraceInfoMax_ELBO
from pyro_infovae.mutual_information import BOUNDS
from pyro_infovae.rows import Rows
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording, keep
from tests.pyro_infovae.steps import CASES, NoSync, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


@pytest.mark.parametrize("bound", BOUNDS)
def test_huge_scores_in_single_precision_stay_finite(bound: str) -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(1e4))

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.factor * torch.sign(x[:, 0]) * (1 + 1e-3 * torch.tanh(z[:, 0]))

    torch.set_default_dtype(torch.float32)
    model, guide, (x,) = programs.vae(num=60_000, batch=100)
    case = Programs(model, guide, (x.float(),))
    loss, grads = seeded(TraceInfoMax_ELBO(Huge(), bound=bound), case)
    assert math.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert {grad.dtype for grad in grads.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model, guide, (x,) = programs.vae()
    objective = TraceInfoMax_ELBO(Recording())
    assert objective.differentiable_loss(model, guide, x.to(dtype)).dtype == dtype


def test_single_precision_at_full_scale_keeps_the_codes_exactly() -> None:
    torch.set_default_dtype(torch.float32)
    critic, rows = Recording(), list[Rows]()
    model, guide, (x,) = programs.vae(num=60_000, batch=100)
    objective = TraceInfoMax_ELBO(critic, 10.0, regularizer=keep(rows))
    objective.loss_and_grads(model, guide, x.float())
    assert torch.equal(critic.calls[0][1], rows[0].values)


@pytest.mark.parametrize(
    "settings",
    [{}, {"negatives": "all"}, {"num_particles": 3, "vectorize_particles": True}],
    ids=["shift", "all", "particles"],
)
@pytest.mark.parametrize("case", ["subsampled", "masked"])
def test_differentiable_loss_does_not_wait_for_the_device(case: str, settings: dict) -> None:
    model, guide, args = CASES[case]
    pyro.enable_validation(False)
    objective = TraceInfoMax_ELBO(Recording(), **settings)
    objective.differentiable_loss(model, guide, *args)
    with NoSync():
        loss = objective.differentiable_loss(model, guide, *args)
    assert loss.requires_grad

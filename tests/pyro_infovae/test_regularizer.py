"""A regulariser of the user's, added to either penalised objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae import TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.rows import Rows
from tests.pyro_infovae import programs
from tests.pyro_infovae.recording import Recording, keep
from tests.pyro_infovae.steps import PARTICLES, penalty, seeded

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "mmd": lambda **settings: TraceMMD_ELBO(0.0, 1.0 + 1e-9, **settings),
    "infomax": lambda **settings: TraceInfoMax_ELBO(Recording(), 0.0, **settings),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
    pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES),
]


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
def test_sees_the_rows(objective: Callable[..., Any], particles: dict) -> None:
    model, guide, (x,) = programs.masked_vae()
    kept: list[Rows] = []
    objective(regularizer=keep(kept), **particles).loss(model, guide, x)
    (rows,) = kept
    draws = particles.get("num_particles", 1)
    assert list(rows.latents) == ["z"]
    assert rows.latents["z"].shape == rows.values.shape == (12 * draws, 2)
    assert torch.equal(rows.data["x"], x.repeat(draws, 1))
    assert rows.weights is not None
    assert rows.weights.tolist() == [float(i % 3 != 0) for i in range(12)] * draws
    assert (rows.num_data, rows.total) == (12, 12)


def test_knows_the_size_of_the_data_set(objective: Callable[..., Any]) -> None:
    case = programs.vae(num=20, batch=7)
    total = objective(regularizer=lambda rows: torch.tensor(float(rows.total)))
    assert penalty(total, case, seed=0) == pytest.approx(20.0, abs=1e-4)


def test_each_group_is_regularised(objective: Callable[..., Any]) -> None:
    case = programs.nested()
    kept: list[Rows] = []
    sites = ["z"] if objective is OBJECTIVES["infomax"] else None
    objective(regularizer=keep(kept), sites=sites).loss(case.model, case.guide, *case.args)
    assert [name for rows in kept for name in rows.latents] == (["z"] if sites else ["outer", "z"])


def test_its_gradient_is_that_of_the_penalty_it_computes(objective: Callable[..., Any]) -> None:
    """A decorrelation of the code and of code and data, against a finite difference."""

    def regularizer(rows: Rows) -> Tensor:
        z = rows.values - rows.values.mean(0)
        return rows.total * ((z[:, 0] * z[:, 1]).mean() ** 2 + (z.T @ rows.data["x"]).abs().sum())

    case = programs.vae(num=20, batch=7)
    ours = objective(regularizer=regularizer, regularizer_weight=2.5, base=Trace_ELBO())
    without = objective(base=Trace_ELBO())
    loss, grads = seeded(ours, case)
    plain_loss, plain = seeded(without, case)
    assert abs(loss - plain_loss) > 1
    value = pyro.param("encoder").unconstrained()
    direction = torch.ones_like(value)
    sides = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            value.add_(step * direction)
        pyro.set_rng_seed(3)
        total = ours.loss(case.model, case.guide, *case.args)
        pyro.set_rng_seed(3)
        sides.append(total - without.loss(case.model, case.guide, *case.args))
    slope = (sides[0] - sides[1]) / 2e-6
    gap = (grads["encoder"] - plain["encoder"]).sum()
    assert float(gap) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("regularizer", "got"),
    [(lambda rows: rows.values, r"\(12, 2\)"), (lambda rows: torch.zeros(1), r"\(1,\)")],
)
def test_must_give_a_scalar(
    objective: Callable[..., Any], regularizer: Callable[[Rows], Tensor], got: str
) -> None:
    case = programs.vae()
    with pytest.raises(ValueError, match=rf"regularizer\(rows\) to be a scalar; got .*{got}"):
        objective(regularizer=regularizer).loss(case.model, case.guide, *case.args)

"""TraceHamiltonian_ELBO below a penalised objective."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae.rows import Rows
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import seeded


def test_alpha_leaves_the_trajectory_unchanged() -> None:
    """The flow follows the true posterior, whatever the penalised objective weights."""
    case = programs.vae(num=20)
    ends, losses = [], []
    for alpha in (0.0, 0.9):
        base = TraceHamiltonian_ELBO(4, 0.2)
        seen: list[Tensor] = []

        def watch(x: Tensor, seen: list[Tensor] = seen) -> None:
            case.model(x)
            seen.append(x)

        objective = TraceMMD_ELBO(
            alpha,
            5.0,
            base=base,
            regularizer=lambda rows: ends.append(rows.values) or rows.values.sum() * 0,
        )
        losses.append(seeded(objective, Programs(watch, case.guide, case.args))[0])
    assert torch.equal(ends[0], ends[1])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("auto", [False, True])
def test_penalties_see_the_refined_latents(auto: bool) -> None:
    case = programs.vae(num=20)
    guide = AutoNormal(case.model) if auto else case.guide
    case = Programs(case.model, guide, case.args)
    guide(*case.args)
    base = TraceHamiltonian_ELBO(4, 0.2, learn=False)
    rows: list[Tensor] = []

    def keep(group: Rows) -> Tensor:
        rows.append(group.latents["z"])
        return group.values.sum() * 0

    for estimator in ("unbiased", "closed_form"):
        objective = TraceMMD_ELBO(0.0, 5.0, estimator=estimator, base=base, regularizer=keep)
        loss, _ = seeded(objective, case)
        assert math.isfinite(loss)
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    torch.testing.assert_close(rows[0], base.refine(case.model, guide)(*case.args)["z"])
    assert torch.equal(rows[0], rows[1])


def test_zero_weight_over_the_hamiltonian_base() -> None:
    case = programs.vae(num=20, batch=6)
    base = TraceHamiltonian_ELBO(3, 0.1)
    expected, expected_grads = seeded(base, case)
    with pytest.warns(UserWarning, match="weight"):
        loss, grads = seeded(TraceMMD_ELBO(0.0, 1.0, base=TraceHamiltonian_ELBO(3, 0.1)), case)
    assert loss == pytest.approx(expected, rel=1e-9)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name])

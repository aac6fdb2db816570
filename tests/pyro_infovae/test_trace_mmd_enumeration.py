"""TraceMMD_ELBO with discrete latents that are enumerated."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import penalty, seeded


def test_rows_are_weighted_by_the_guide() -> None:
    """z | y with y enumerated: the penalty is that of weights q(y | x), written out."""
    case = programs.mixture()
    guide = config_enumerate(case.guide, "parallel")
    objective = TraceMMD_ELBO(
        0.0, 4.0, estimator="closed_form", base=TraceEnum_ELBO(max_plate_nesting=1)
    )
    value = penalty(objective, Programs(case.model, guide, case.args), seed=0)
    x = case.args[0]
    weight = float(pyro.param("weight").detach())
    logits = torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 1]], -1) * weight
    q = logits.softmax(-1)
    locs = weight * x[:, 0, None] + torch.arange(3.0) - 1
    total = pairs = 0.0
    for i in range(12):
        for j in range(12):
            for a in range(3):
                for b in range(3):
                    if i != j:
                        w = float(q[i, a] * q[j, b])
                        s = 1 + 2 * 0.16
                        gap = float(locs[i, a] - locs[j, b])
                        total += w * math.sqrt(1 / s) * math.exp(-(gap**2) / (2 * s))
                        pairs += w
    cross = sum(
        float(q[i, a]) / 12 * math.sqrt(1 / 2.16) * math.exp(-(float(locs[i, a]) ** 2) / (2 * 2.16))
        for i in range(12)
        for a in range(3)
    )
    expected = total / pairs + math.sqrt(1 / 3) - 2 * cross
    assert value == pytest.approx(12 * 3 * expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_trains_under_enumeration(alpha: float) -> None:
    case = programs.mixture(learned_prior=True)
    guide = config_enumerate(case.guide, "parallel")
    objective = TraceMMD_ELBO(alpha, base=TraceEnum_ELBO(max_plate_nesting=1))
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    losses = [svi.step(*case.args) for _ in range(30)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_mixture_prior_summed_out_in_the_model() -> None:
    case = programs.mixture(learned_prior=True, enumerate_in_model=True)
    objective = TraceMMD_ELBO(0.0, 2.0, base=TraceEnum_ELBO(max_plate_nesting=1))
    seeded(objective, case)
    values = torch.tensor([penalty(objective, case, seed=i) for i in range(50)])
    assert values.std() > 0


def test_enumerated_kl_weight_scales_only_the_continuous_latent() -> None:
    case = programs.mixture()
    guide = config_enumerate(case.guide, "parallel")
    base = TraceEnum_ELBO(max_plate_nesting=1)
    losses = {
        alpha: seeded(
            TraceMMD_ELBO(alpha, 1 - alpha + 1e-12, base=base),
            Programs(case.model, guide, case.args),
        )[0]
        for alpha in (0.0, 0.5, 1.0)
    }
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-9)

"""The prefactors of TraceHamiltonian_ELBO weight its terms, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pyro.infer.autoguide import AutoNormal

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import assert_bound, flow, normal_hierarchy
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import seeded

# Guides here are hardly trained; the standard error tells what is known.
pytestmark = pytest.mark.filterwarnings("ignore:log_evidence")


def test_prefactors_leave_the_refined_guide_alone() -> None:
    """They weight the objective; the refined guide's density is that of its draws."""
    model, exact = normal_hierarchy()
    guide = AutoNormal(model, init_scale=0.8)
    guide()
    elbo = flow(learn=False, logp_prefactor=(1.0, 2.0, 2.0), logq_prefactor=(0.5, 1.0, 1.0))
    assert_bound(Programs(model, guide, ()), exact, elbo=elbo, num_samples=40_000)


def test_prefactors_weight_the_terms() -> None:
    """The loss is linear in each prefactor, and the slopes add up to it."""
    case = programs.vae(num=5)
    ones = (1.0, 1.0, 1.0)

    def loss(logp: Any = ones, logq: Any = ones) -> float:
        objective = TraceHamiltonian_ELBO(
            3, 0.1, learn=False, logp_prefactor=logp, logq_prefactor=logq
        )
        return seeded(objective, case)[0]

    slopes = []
    for i in range(6):
        doubled = [1.0] * 6
        doubled[i] = 2.0
        slopes.append(loss(tuple(doubled[:3]), tuple(doubled[3:])) - loss())
    assert sum(slopes) == pytest.approx(loss(), rel=1e-9)
    without = loss((0.0, 1.0, 1.0))
    assert without == pytest.approx(loss() - slopes[0], rel=1e-9)
    # At a step of 0 without tempering the terms are the guide's and the model's own.
    d, n = 2, 5
    assert slopes[5] == pytest.approx(-n * d / 2 * math.log(0.5), rel=1e-9)

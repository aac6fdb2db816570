"""TraceMMD_ELBO on latents in several stacks of plates."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import PARTICLES, penalty, seeded


def test_each_group_has_its_own_scale() -> None:
    """N is 6 for the groups and 24 for the items; for a point mass at 0 the MMD is known."""

    def guide(x: Tensor) -> None:
        with pyro.plate("groups", 6, dim=-1):
            zero = torch.zeros(6, 2) * pyro.param("one", torch.tensor(1.0))
            pyro.sample("outer", dist.Delta(zero, event_dim=1))
            with pyro.plate("items", 4, dim=-2):
                pyro.sample("z", dist.Delta(zero.expand(4, 6, 2), event_dim=1))

    model, _, args = programs.nested()
    case = Programs(model, guide, args)
    # d=2 and ℓ²=2; the items' prior, N(outer, 1), is the standard normal here as well.
    expected = 1 + 2 / (2 + 2) - 2 * 2 / (2 + 1)
    for site, total in (("outer", 6), ("z", 24)):
        objective = TraceMMD_ELBO(0.0, 2.0, sites=[site], estimator="closed_form")
        assert penalty(objective, case, seed=0) == pytest.approx(total * expected, rel=1e-9)


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
def test_gradients_are_finite(particles: dict) -> None:
    for case in (programs.nested(), programs.sequences()):
        loss, grads = seeded(TraceMMD_ELBO(0.5, 10.0, **particles), case)
        assert math.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_several_groups_add_up() -> None:
    case = programs.nested()
    seeded(TraceMMD_ELBO(), case)
    settings = {"estimator": "closed_form"}
    both, outer, inner = (
        penalty(TraceMMD_ELBO(0.0, 2.0, sites=sites, **settings), case, seed=4)
        for sites in (None, ["outer"], ["z"])
    )
    assert both == pytest.approx(outer + inner, rel=1e-9)
    assert outer > 0
    assert inner > 0

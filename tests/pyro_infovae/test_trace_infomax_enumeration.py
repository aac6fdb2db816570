"""TraceInfoMax_ELBO, z | y with y enumerated: the codes of every y, weighted by q(y | x)."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate

from pyro_infovae import TraceInfoMax_ELBO
from pyro_infovae.rows import Rows
from tests import reference_mi
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording, keep, score
from tests.pyro_infovae.steps import PARTICLES, penalty, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
@pytest.mark.parametrize("bound", ["nwj", "dv", "infonce"])
def test_equals_loops_over_the_values(bound: str, particles: dict) -> None:
    model, guide, (x,) = programs.mixture()
    kept: list[Rows] = []
    critic = Recording(x_dim=1, z_dim=1)
    base = TraceEnum_ELBO(max_plate_nesting=1, **particles)
    objective = TraceInfoMax_ELBO(
        critic, 1.5, bound=bound, negatives="all", regularizer=keep(kept), base=base
    )
    case = Programs(model, config_enumerate(guide, "parallel"), (x,))
    seeded(objective, case)
    kept.clear()
    value = penalty(objective, case, seed=0)

    draws = particles.get("num_particles", 1)
    codes = kept[0].values
    # Rows of particles run in turn are below one another, vectorised ones within a value of y.
    order = "vrd" if "vectorize_particles" in particles else "rvd"
    sizes = {"v": 3, "r": draws, "d": 12}
    z = codes.view([sizes[axis] for axis in order]).permute([order.index(a) for a in "rvd"])
    weight = float(pyro.param("weight").detach())
    q = (torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 1]], -1) * weight).softmax(-1)
    joint, joint_weights, marginal, marginal_weights = [], [], [], []
    for r in range(draws):
        for i in range(12):
            pairs = [
                (score(critic, x[i, 0], z[r, v, j : j + 1]), float(q[j, v]))
                for j in range(12)
                for v in range(3)
                if j != i
            ]
            for v in range(3):
                joint.append(score(critic, x[i, 0], z[r, v, i : i + 1]))
                joint_weights.append(float(q[i, v]))
                marginal.append([t for t, _ in pairs])
                marginal_weights.append([w for _, w in pairs])
    formula = getattr(reference_mi, bound)
    estimate, _ = formula(joint, marginal, joint_weights, marginal_weights)
    assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9)


def test_shifted_negatives_average_to_all() -> None:
    model, guide, args = programs.mixture()
    case = Programs(model, config_enumerate(guide, "parallel"), args)
    shifted, every = (
        TraceInfoMax_ELBO(
            Recording(x_dim=1, z_dim=1),
            negatives=negatives,
            base=TraceEnum_ELBO(max_plate_nesting=1),
        )
        for negatives in ("shift", "all")
    )
    seeded(shifted, case)
    gaps = torch.tensor(
        [penalty(shifted, case, seed=i) - penalty(every, case, seed=i) for i in range(150)]
    )
    assert gaps.std() > 0
    assert abs(gaps.mean()) < 4 * gaps.std() / math.sqrt(150)


def test_trains() -> None:
    model, guide, args = programs.mixture(learned_prior=True)
    objective = TraceInfoMax_ELBO(
        Recording(x_dim=1, z_dim=1), 0.3, base=TraceEnum_ELBO(max_plate_nesting=1)
    )
    svi = SVI(
        model,
        config_enumerate(guide, "parallel"),
        pyro.optim.Adam({"lr": 1e-2}),
        loss=objective,
    )
    losses = [svi.step(*args) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])

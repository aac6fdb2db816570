"""The penalised objectives with discrete latents that are enumerated: rows have q(y | x)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_infovae import TraceInfoMax_ELBO, TraceMMD_ELBO
from tests import reference_mi
from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Case
from tests.objectives.critics import keep, recording
from tests.pyro_infovae import programs
from tests.pyro_infovae.half import PYRO

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def enumerated(*, learned_prior: bool = False) -> Case:
    case = programs.mixture(learned_prior=learned_prior)
    return Case(case.model, config_enumerate(case.guide, "parallel"), case.args)


def enum(**particles: Any) -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1, **particles)


def posterior(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q(y | x), and the locations of q(z | x, y)."""
    weight = float(pyro.param("weight").detach())
    logits = torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 1]], -1) * weight
    return logits.softmax(-1), weight * x[:, 0, None] + torch.arange(3.0) - 1


class TestMMD:
    def test_rows_are_weighted_by_the_guide(self) -> None:
        """z | y with y enumerated: the penalty is that of weights q(y | x), written out."""
        case = enumerated()
        objective = TraceMMD_ELBO(0.0, 4.0, estimator="closed_form", base=enum())
        value = PYRO.penalty(objective, case)
        q, locs = posterior(case.args[0])
        total = pairs = 0.0
        for i in range(12):
            for j in range(12):
                for a in range(3):
                    for b in range(3):
                        w = float(q[i, a] * q[j, b])
                        s = 1 + 2 * 0.16
                        gap = float(locs[i, a] - locs[j, b])
                        total += w * math.sqrt(1 / s) * math.exp(-(gap**2) / (2 * s))
                        pairs += w
        cross = sum(
            float(q[i, a]) / 12 * math.sqrt(1 / 2.16) * math.exp(-(float(locs[i, a]) ** 2) / 4.32)
            for i in range(12)
            for a in range(3)
        )
        expected = total / pairs + math.sqrt(1 / 3) - 2 * cross
        assert value == pytest.approx(12 * 3 * expected, rel=1e-9)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_trains(self, alpha: float) -> None:
        objective = TraceMMD_ELBO(alpha, base=enum())
        losses = PYRO.trained(objective, enumerated(learned_prior=True), steps=30).losses
        assert np.isfinite(losses).all()
        assert losses[-5:].sum() < losses[:5].sum()

    def test_a_mixture_prior_summed_out_in_the_model(self) -> None:
        case = programs.mixture(learned_prior=True, enumerate_in_model=True)
        objective = TraceMMD_ELBO(0.0, 2.0, base=enum())
        assert PYRO.penalties(objective, Case(*case), count=50).std() > 0

    def test_the_kls_weight_scales_only_the_continuous_latent(self) -> None:
        base = enum()
        elbos = [TraceMMD_ELBO(alpha, 1 - alpha + 1e-12, base=base) for alpha in (0.0, 0.5, 1.0)]
        none, part, whole = PYRO.losses(elbos, enumerated(), count=1)[:, 0]
        assert part == pytest.approx((none + whole) / 2, rel=1e-9)


class TestInfoMax:
    @pytest.mark.parametrize("bound", ["nwj", "dv", "infonce"])
    @pytest.mark.parametrize("particles", [ONE, LOOPED, VECTORISED], ids=["one", "loop", "vector"])
    def test_equals_loops_over_the_values(self, bound: str, particles: dict[str, Any]) -> None:
        case, log = enumerated(), list[Any]()
        objective = TraceInfoMax_ELBO(
            recording(PYRO, [], x_dim=1, z_dim=1),
            1.5,
            bound=bound,
            negatives="all",
            regularizer=keep(log),
            base=enum(**particles),
        )
        value = PYRO.penalty(objective, case)
        (((_, codes),),) = PYRO.seen(log, objective, case)

        draws = particles.get("num_particles", 1)
        # Rows of particles run in turn are below one another, vectorised ones within a value of y.
        order = "vrd" if particles.get("vectorize_particles") else "rvd"
        sizes = {"v": 3, "r": draws, "d": 12}
        z = codes.reshape([sizes[axis] for axis in order])
        z = z.transpose([order.index(a) for a in "rvd"])
        (x,) = case.args
        q, _ = posterior(x)
        joint, joint_weights, marginal, marginal_weights = [], [], [], []
        for r in range(draws):
            scores = PYRO.all_scores(objective, case, x[:, 0].numpy(), z[r].reshape(36, 1))
            for i in range(12):
                others = [
                    (v * 12 + j, float(q[j, v])) for j in range(12) for v in range(3) if j != i
                ]
                for v in range(3):
                    joint.append(scores[i, v * 12 + i])
                    joint_weights.append(float(q[i, v]))
                    marginal.append([scores[i, column] for column, _ in others])
                    marginal_weights.append([weight for _, weight in others])
        formula = getattr(reference_mi, bound)
        estimate, _ = formula(joint, marginal, joint_weights, marginal_weights)
        assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9)

    def test_shifted_negatives_average_to_all(self) -> None:
        base, shown = enum(), recording(PYRO, [], x_dim=1, z_dim=1)
        elbos = [TraceInfoMax_ELBO(shown, negatives=n, base=base) for n in ("shift", "all")]
        shifted, every = PYRO.losses(elbos, enumerated(), count=60)
        gaps = shifted - every
        assert gaps.std() > 0
        assert abs(gaps.mean()) < 4 * gaps.std() / math.sqrt(60)

    def test_trains(self) -> None:
        shown = recording(PYRO, [], x_dim=1, z_dim=1)
        objective = TraceInfoMax_ELBO(shown, 0.3, base=enum())
        losses = PYRO.trained(objective, enumerated(learned_prior=True), steps=60).losses
        assert losses[-10:].sum() < losses[:10].sum()

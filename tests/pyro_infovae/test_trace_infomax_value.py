"""TraceInfoMax_ELBO's value: the formula, and its scale."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_infovae import ConcatCritic, SeparableCritic, TraceInfoMax_ELBO
from pyro_infovae.mutual_information import BOUNDS, smile
from pyro_infovae.rows import Rows
from tests import reference_mi
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.recording import Recording, keep, score
from tests.pyro_infovae.steps import CASES, PARTICLES, averages_to, penalty, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


class TestFormula:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.4, 0.7), (2.0, 0.0)])
    def test_equals_the_formula(self, alpha: float, beta: float) -> None:
        model, guide, (x,) = programs.vae()
        critic = Recording()
        objective = TraceInfoMax_ELBO(critic, alpha, beta, base=Trace_ELBO())
        loss, _ = seeded(objective, Programs(model, guide, (x,)))

        pyro.set_rng_seed(3)
        loc = x @ pyro.param("encoder").detach()
        scale = pyro.param("scale").detach()
        z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        offset = int(torch.randint(1, 12, ()))
        likelihood = dist.Normal(torch.tanh(z) @ pyro.param("decoder").detach(), 0.7)
        kl = (dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum()
        joint = [score(critic, x[i], z[i]) for i in range(12)]
        marginal = [score(critic, x[i], z[(i + offset) % 12]) for i in range(12)]
        information = sum(joint) / 12 - sum(math.exp(t - 1) for t in marginal) / 12
        expected = -likelihood.log_prob(x).sum() + beta * kl - 12 * alpha * information
        assert loss == pytest.approx(float(expected), rel=1e-10)

    @pytest.mark.parametrize("bound", BOUNDS)
    @pytest.mark.parametrize("critic", [ConcatCritic, SeparableCritic])
    def test_all_negatives_equal_a_loop(self, bound: str, critic: type[nn.Module]) -> None:
        case = programs.vae(num=20, batch=7)
        network = critic(3, 2, (8,))
        rows: list[Rows] = []
        objective = TraceInfoMax_ELBO(
            network, 1.5, bound=bound, negatives="all", regularizer=keep(rows)
        )
        seeded(objective, case)
        rows.clear()
        value = penalty(objective, case, seed=5)
        x, z = rows[0].data["x"], rows[0].values
        joint = [score(network, x[i], z[i]) for i in range(7)]
        marginal = [[score(network, x[i], z[j]) for j in range(7) if j != i] for i in range(7)]
        estimate, _ = getattr(reference_mi, bound)(joint, marginal, [1.0] * 7, [[1.0] * 6] * 7)
        assert value == pytest.approx(-20 * 1.5 * estimate, rel=1e-9)

    @pytest.mark.parametrize("bound", ["nwj", "infonce"])
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_masked_rows_count_neither_as_data_nor_as_negatives(
        self, bound: str, particles: dict
    ) -> None:
        """As the loops over the rows that are not masked, in each particle on its own."""
        critic, rows = Recording(), list[Rows]()
        objective = TraceInfoMax_ELBO(
            critic, 1.5, bound=bound, negatives="all", regularizer=keep(rows), **particles
        )
        case = programs.masked_vae()
        seeded(objective, case)
        rows.clear()
        value = penalty(objective, case, seed=5)
        x, z = rows[0].data["x"], rows[0].values
        kept = [r for r in range(len(z)) if r % 12 % 3]
        joint = [score(critic, x[r], z[r]) for r in kept]
        marginal = [
            [score(critic, x[r], z[s]) for s in kept if s != r and s // 12 == r // 12] for r in kept
        ]
        ones = [1.0] * len(kept)
        estimate, _ = getattr(reference_mi, bound)(joint, marginal, ones, [[1.0] * 7] * len(kept))
        assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9)

    def test_a_bound_with_an_option(self) -> None:
        case = CASES["plain"]
        clipped, plain = (
            TraceInfoMax_ELBO(Recording(), bound=bound)
            for bound in (partial(smile, clip=1e-3), "dv")
        )
        assert penalty(clipped, case, seed=0) != pytest.approx(penalty(plain, case, seed=0))


class TestScale:
    @pytest.mark.parametrize("settings", [{}, {"negatives": "all"}], ids=["shift", "all"])
    def test_the_expected_penalty_ignores_the_batch_size(self, settings: dict) -> None:
        means, errors = [], []
        for batch, repeats in ((32, 150), (256, 20)):
            objective = TraceInfoMax_ELBO(Recording(), **settings)
            case = programs.vae(num=1000, batch=batch)
            values = torch.tensor([penalty(objective, case, seed=i) for i in range(repeats)])
            means.append(float(values.mean()))
            errors.append(float(values.std()) / math.sqrt(repeats))
        assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
        assert abs(means[1]) > 8 * max(errors), "too little signal to tell the batch sizes apart"

    @pytest.mark.parametrize("vectorize", [False, True])
    def test_the_expected_penalty_ignores_the_particles(self, vectorize: bool) -> None:
        case = programs.vae(num=30)
        one = [penalty(TraceInfoMax_ELBO(Recording()), case, seed=i) for i in range(200)]
        many = TraceInfoMax_ELBO(Recording(), num_particles=8, vectorize_particles=vectorize)
        values = torch.tensor([penalty(many, case, seed=i) for i in range(60)])
        assert averages_to(one, float(values.mean()))
        assert abs(float(values.mean())) > 8 * float(values.std()) / math.sqrt(60)

    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        case = programs.vae()
        scaled = Programs(
            pyro.poutine.scale(case.model, 0.1), pyro.poutine.scale(case.guide, 0.1), case.args
        )
        objective = TraceInfoMax_ELBO(Recording())
        seeded(objective, case)
        assert penalty(objective, case, seed=5) == pytest.approx(penalty(objective, scaled, seed=5))

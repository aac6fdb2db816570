"""TraceInfoMax_ELBO's value: the formula, and its scale."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from scipy.stats import norm

from numpyro_backend.critics import SeparableCritic
from numpyro_backend.mutual_information import BOUNDS, smile
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests import reference_mi
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import all_scores, concat, observe
from tests.numpyro_backend.steps import (
    CASES,
    PARTICLES,
    averages_to,
    initial,
    losses,
    penalties,
    penalty,
    wrapped,
)

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


class TestFormula:
    def test_equals_the_formula(self) -> None:
        case = programs.vae()
        _, guide, (x,) = case
        critic = concat()
        weights = (0.0, 1.0), (0.4, 0.7), (2.0, 0.0)
        objectives = [
            TraceInfoMax_ELBO(critic, alpha, beta, base=Trace_ELBO()) for alpha, beta in weights
        ]
        params = initial(wrapped(objectives[0], case))
        _, guide_key, penalty_key = jax.random.split(jax.random.key(3), 3)
        program = handlers.seed(handlers.substitute(guide, data=params), guide_key)
        z = jax.jit(lambda: handlers.trace(program).get_trace(x)["z"]["value"])()
        (group_key,) = jax.random.split(penalty_key, 1)
        offset = int(jax.random.randint(group_key, (), 1, 12))
        q, decoder = norm(x @ params["encoder"], params["scale"]), np.asarray(params["decoder"])
        likelihood = norm.logpdf(x, np.tanh(z) @ decoder, 0.7).sum()
        kl = (q.logpdf(z) - norm.logpdf(z)).sum()
        scores = all_scores(critic, params, x, z)
        marginal = [math.exp(scores[i, (i + offset) % 12] - 1) for i in range(12)]
        information = np.diag(scores).mean() - sum(marginal) / 12
        values = losses(*objectives, case=wrapped(objectives[0], case))
        for (alpha, beta), loss in zip(weights, values, strict=True):
            expected = -likelihood + beta * kl - 12 * alpha * information
            assert loss == pytest.approx(float(expected), rel=1e-10)

    @pytest.mark.parametrize("critic", [concat(), SeparableCritic(3, 2, (8,))])
    def test_all_negatives_equal_a_loop(self, critic: Any) -> None:
        case = CASES["subsampled"]
        objectives = [
            TraceInfoMax_ELBO(critic, 1.5, bound=bound, negatives="all", base=Trace_ELBO())
            for bound in BOUNDS
        ]
        seen, params = observe(critic, 1.5, case, negatives="all", base=Trace_ELBO())
        base, *values = losses(Trace_ELBO(), *objectives, case=wrapped(objectives[0], case))
        scores = all_scores(critic, params, seen.rows.data["x"], seen.rows.values)
        marginal = [[scores[i, j] for j in range(7) if j != i] for i in range(7)]
        for bound, loss in zip(BOUNDS, values, strict=True):
            formula = getattr(reference_mi, bound)
            estimate, _ = formula(np.diag(scores), marginal, [1.0] * 7, [[1.0] * 6] * 7)
            assert loss - base == pytest.approx(-20 * 1.5 * estimate, rel=1e-9), bound

    @pytest.mark.parametrize("particles", [PARTICLES["vectorised"], PARTICLES["mapped"]])
    def test_masked_rows_count_neither_as_data_nor_as_negatives(self, particles: dict) -> None:
        """As the loops over the rows that are not masked, in each particle on its own."""
        critic, case, base = concat(), CASES["masked"], Trace_ELBO(**particles)
        bounds = "nwj", "infonce"
        objectives = [
            TraceInfoMax_ELBO(critic, 1.5, bound=bound, negatives="all", base=base)
            for bound in bounds
        ]
        seen, params = observe(critic, 1.5, case, negatives="all", base=base)
        expected, *values = losses(base, *objectives, case=wrapped(objectives[0], case))
        scores = all_scores(critic, params, seen.rows.data["x"], seen.rows.values)
        kept = [r for r in range(36) if r % 12 % 3]
        joint = [scores[r, r] for r in kept]
        marginal = [[scores[r, s] for s in kept if s != r and s // 12 == r // 12] for r in kept]
        ones = [1.0] * len(kept)
        for bound, loss in zip(bounds, values, strict=True):
            formula = getattr(reference_mi, bound)
            estimate, _ = formula(joint, marginal, ones, [[1.0] * 7] * len(kept))
            assert loss - expected == pytest.approx(-12 * 1.5 * estimate, rel=1e-9), bound

    def test_a_bound_with_an_option(self) -> None:
        clipped, plain = (
            TraceInfoMax_ELBO(concat(), bound=bound) for bound in (partial(smile, clip=1e-3), "dv")
        )
        first, second = losses(clipped, plain, case=wrapped(plain, CASES["plain"]))
        assert first != pytest.approx(second)


class TestScale:
    def test_the_expected_penalty_ignores_the_particles(self) -> None:
        one = TraceInfoMax_ELBO(concat())
        case = wrapped(one, programs.vae(num=30))
        alone = penalties(one, case, 200)
        for vectorize in (True, False):
            many = TraceInfoMax_ELBO(concat(), num_particles=8, vectorize_particles=vectorize)
            values = penalties(many, case, 60)
            assert averages_to(alone, float(values.mean()))
            assert abs(float(values.mean())) > 8 * float(values.std()) / math.sqrt(60)

    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        objective = TraceInfoMax_ELBO(concat())
        case = CASES["plain"]
        scaled = Programs(
            handlers.scale(case.model, scale=0.1), handlers.scale(case.guide, scale=0.1), case.args
        )
        values = [penalty(objective, wrapped(objective, program)) for program in (case, scaled)]
        assert values[0] == pytest.approx(values[1])
        assert values[0] != 0

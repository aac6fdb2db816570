"""TraceMMD_ELBO compares q(z) with the prior that the model has there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_numpyro, slow_in_numpyro
from tests.objectives.programs import covariate_prior, hierarchical, masked, two_latents
from tests.objectives.statistics import averages_to, standard_error
from tests.shared_programs import X

EXACT: dict[str, tuple[Callable[[Half], Case], dict[str, Any]]] = {
    "hierarchical": (partial(hierarchical, exact=True), VECTORISED),
    "two latents": (partial(two_latents, exact=True), ONE),
    "covariates": (partial(covariate_prior, exact=True), LOOPED),
}
MASK = np.arange(12) % 3 != 0


def standard_normal(half: Half, num: int, loc: Callable[[], Any]) -> Case:
    """z ~ N(0, 1) under a guide N(loc, 1)."""

    def model() -> None:
        with half.plate("data", num):
            half.sample("z", half.dist.Normal(half.xp.zeros(num), 1.0))

    def guide() -> None:
        with half.plate("data", num):
            half.sample("z", half.dist.Normal(loc() + half.xp.zeros(num), 1.0))

    return Case(model, guide)


class TestUnbiased:
    """Where the guide draws from the prior, the penalty averages to 0."""

    @in_both("name", EXACT, quick=[])
    def test_exact_conditional_prior(self, half: Half, name: str) -> None:
        program, particles = EXACT[name]
        for kw in [particles] if half.compiles else [ONE, LOOPED, VECTORISED]:
            objective = half.library.TraceMMD_ELBO(0.0, 2.0, **kw)
            values = half.penalties(objective, program(half), count=30)
            assert averages_to(values, 0.0)
            assert values.std() > 0

    @in_numpyro
    @pytest.mark.parametrize(
        "particles", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))]
    )
    def test_the_penalty_draws_with_a_key_of_its_own(self, half: Half, particles: int) -> None:
        """A prior drawn with the guide's key would be the guide's own draws."""
        log: list[Any] = []

        def kernel(x: Any, y: Any) -> Any:
            log.append((x, y))
            return x @ y.T

        objective = half.library.TraceMMD_ELBO(
            0.0, 2.0, kernel, estimator="biased", num_particles=particles
        )
        (pairs,) = half.seen(log, objective, standard_normal(half, 12, lambda: 0.0))
        ((codes, prior),) = [(x, y) for x, y in pairs if not np.array_equal(x, y)]
        assert len(codes) == 12 * particles
        assert not np.isin(codes, prior).any()

    @slow_in_numpyro
    def test_the_prior_is_drawn_for_the_same_minibatch(self, half: Half) -> None:
        """Guide and prior are all but the same points, so that even the biased MMD² is 0."""
        x = half.xp.asarray(np.random.default_rng(1).normal(size=200))

        def narrow() -> None:
            with half.plate("data", 200, batch=5) as index:
                half.sample("z", half.dist.Normal(x[index], 1e-6))

        settings = {"estimator": "biased", **VECTORISED}
        objective = half.library.TraceMMD_ELBO(0.0, 2.0, **settings)
        assert half.penalty(objective, Case(narrow, narrow)) == pytest.approx(0.0, abs=1e-6)

    @in_both(
        "setting",
        ["closed_form both", "unbiased both", "biased both", "biased model", "biased guide"],
        quick=["biased guide"],
    )
    def test_masked_rows_of_the_prior_count_for_nothing(self, half: Half, setting: str) -> None:
        estimator, programs = setting.split()
        case = masked(half, covariate_prior(half), MASK, programs=programs)
        objective = half.library.TraceMMD_ELBO(0.0, 2.0, estimator=estimator)
        first, second = (
            half.penalty(objective, case._replace(args=(half.xp.asarray(x),)))
            for x in (X, np.where(MASK[:, None], X, X + 50.0))
        )
        assert first == pytest.approx(second, rel=1e-9)

    @slow_in_numpyro
    def test_a_joint_mismatch_is_seen_that_no_marginal_shows(self, half: Half) -> None:
        def model() -> None:
            with half.plate("data", 60):
                z1 = half.sample("z1", half.dist.Normal(half.xp.zeros(60), 1.0))
                half.sample("z2", half.dist.Normal(0.9 * z1, math.sqrt(1 - 0.81)))

        def guide() -> None:
            with half.plate("data", 60):
                for name in ("z1", "z2"):
                    half.sample(name, half.dist.Normal(half.xp.zeros(60), 1.0))

        objective = half.library.TraceMMD_ELBO(0.0, 2.0)
        values = half.penalties(objective, Case(model, guide), count=60)
        assert values.mean() > 8 * standard_error(values)

    @slow_in_numpyro
    def test_particles_of_a_global_latent(self, half: Half) -> None:
        """Outside plates N is 1 and the particles are the rows: θ ~ N(1.5, 0.8) against N(0, 1)."""
        case = hierarchical(half, exact=True)
        closed, sampled = (
            half.library.TraceMMD_ELBO(
                0.0, 2.0, estimator=estimator, sites=["theta"], num_particles=6
            )
            for estimator in ("closed_form", "unbiased")
        )
        expected = (
            math.sqrt(1 / (1 + 2 * 0.64))
            + math.sqrt(1 / 3)
            - 2 * math.sqrt(1 / 2.64) * math.exp(-(1.5**2) / (2 * 2.64))
        )
        assert half.penalty(closed, case) == pytest.approx(expected, rel=1e-9)
        assert averages_to(half.penalties(sampled, case, count=60), expected)


class TestPriors:
    @slow_in_numpyro
    def test_a_learned_prior_feels_the_penalty(self, half: Half) -> None:
        x = half.xp.asarray(X[:, 0])

        def model() -> None:
            loc = half.param("prior_loc", 3.0)
            with half.plate("data", 12):
                z = half.sample("z", half.dist.Normal(loc + 0 * x, 1.0))
                half.sample("x", half.dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with half.plate("data", 12):
                half.sample("z", half.dist.Normal(half.param("loc", 0.0) + 0 * x, 1.0))

        elbos = [
            half.library.TraceMMD_ELBO(1.0, 5.0, estimator=estimator)
            for estimator in ("unbiased", "biased", "closed_form")
        ]
        for _, grads in half.steps(elbos, Case(model, guide)):
            assert grads["prior_loc"] > 0, "the prior should move towards the posterior"
            assert grads["loc"] != 0

    @slow_in_numpyro
    def test_the_penalty_reaches_the_latents_that_the_prior_depends_on(self, half: Half) -> None:
        base, ours = half.steps(
            [
                half.infer.Trace_ELBO(),
                half.library.TraceMMD_ELBO(0.0, 50.0, base=half.infer.Trace_ELBO()),
            ],
            hierarchical(half),
        )
        assert ours.grads["theta_loc"] != pytest.approx(float(base.grads["theta_loc"]))

    @pytest.mark.parametrize("prior_draws", [1, 5])
    @pytest.mark.parametrize("particles", [ONE, VECTORISED], ids=["one", "vectorised"])
    def test_the_likelihood_is_not_computed_for_the_prior(
        self, half: Half, particles: dict[str, Any], prior_draws: int
    ) -> None:
        """Even by a model that catches exceptions."""
        calls: list[str] = []
        x = half.xp.asarray(X[:, 0])

        def model() -> None:
            with half.plate("data", 12):
                try:
                    z = half.sample("z", half.dist.Normal(0 * x, 1.0))
                except Exception:
                    z = 0 * x
                calls.append("decoder")
                half.sample("x", half.dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with half.plate("data", 12):
                half.sample("z", half.dist.Normal(x, 1.0))

        def decodings(objective: Any) -> int:
            calls.clear()
            half.evaluate(objective, Case(model, guide))
            return len(calls)

        objective = half.library.TraceMMD_ELBO(prior_draws=prior_draws, **particles)
        half.evaluate(objective, Case(model, guide))  # in which the plates' nesting is found out
        assert decodings(objective) == decodings(objective.base) > 0

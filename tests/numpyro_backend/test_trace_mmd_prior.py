"""TraceMMD_ELBO compares q(z) with the prior that the model has there."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer import Trace_ELBO

from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.penalised_elbo import penalty_key
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import averages_to, evaluate_shapes, penalties, penalty, seeded

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestUnbiased:
    """Where the guide draws from the prior, the penalty averages to 0."""

    @pytest.mark.parametrize(
        ("case", "particles"),
        [
            (programs.hierarchical(exact=True), {"num_particles": 3}),
            (programs.two_latents(exact=True), {}),
            (
                programs.covariate_prior(exact=True),
                {"num_particles": 3, "vectorize_particles": False},
            ),
        ],
        ids=["hierarchical", "two latents", "covariates"],
    )
    def test_exact_conditional_prior(self, case: Programs, particles: dict) -> None:
        values = penalties(TraceMMD_ELBO(0.0, 2.0, **particles), case, 150)
        assert averages_to(values, 0.0)
        assert values.std() > 0

    @pytest.mark.parametrize("particles", [1, 2, 5])
    def test_the_penalty_draws_with_a_key_of_its_own(self, particles: int) -> None:
        key = jax.random.key(0)
        bases = jax.random.split(key, max(particles, 2))
        assert not (bases == penalty_key(key, particles)).any()

    def test_the_prior_is_drawn_for_the_same_minibatch(self) -> None:
        """Guide and prior are all but the same points, so that even the biased MMD² is 0."""

        def narrow(x: Array) -> None:
            with numpyro.plate("data", len(x), subsample_size=5) as index:
                numpyro.sample("z", dist.Normal(jnp.asarray(x)[index, 0], 1e-6))

        case = Programs(narrow, narrow, (programs.data(200),))
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="biased", num_particles=2)
        assert penalty(objective, case) == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize(
        ("estimator", "masks_model", "masks_guide"),
        [("closed_form", True, True), ("biased", True, False), ("biased", False, True)],
    )
    def test_masked_rows_of_the_prior_count_for_nothing(
        self, estimator: Any, masks_model: bool, masks_guide: bool
    ) -> None:
        model, guide, (x,) = programs.covariate_prior()
        mask = np.arange(len(x)) % 3 != 0
        masked = [
            handlers.mask(program, mask=jnp.asarray(mask)) if is_masked else program
            for program, is_masked in ((model, masks_model), (guide, masks_guide))
        ]
        moved = np.where(mask[:, None], x, x + 50.0)
        objective = TraceMMD_ELBO(0.0, 2.0, estimator=estimator)
        first, second = (penalty(objective, Programs(*masked, (data,))) for data in (x, moved))
        assert first == pytest.approx(second, rel=1e-9)

    def test_a_joint_mismatch_is_seen_that_no_marginal_shows(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 60):
                z1 = numpyro.sample("z1", dist.Normal(0.0, 1.0))
                numpyro.sample("z2", dist.Normal(0.9 * z1, math.sqrt(1 - 0.81)))

        def guide() -> None:
            with numpyro.plate("data", 60):
                numpyro.sample("z1", dist.Normal(0.0, 1.0))
                numpyro.sample("z2", dist.Normal(0.0, 1.0))

        values = penalties(TraceMMD_ELBO(0.0, 2.0), Programs(model, guide, ()), 60)
        assert values.mean() > 8 * values.std(ddof=1) / math.sqrt(60)

    def test_particles_of_a_global_latent(self) -> None:
        """Outside plates N is 1 and the particles are the rows: θ ~ N(1.5, 0.8) against N(0, 1)."""
        case = programs.hierarchical(exact=True)
        closed, sampled = (
            TraceMMD_ELBO(0.0, 2.0, estimator=estimator, sites=["theta"], num_particles=6)
            for estimator in ("closed_form", "unbiased")
        )
        expected = (
            math.sqrt(1 / (1 + 2 * 0.64))
            + math.sqrt(1 / 3)
            - 2 * math.sqrt(1 / 2.64) * math.exp(-(1.5**2) / (2 * 2.64))
        )
        assert penalty(closed, case) == pytest.approx(expected, rel=1e-9)
        assert averages_to(penalties(sampled, case, 100), expected)


class TestPriors:
    def test_a_learned_prior_feels_the_penalty(self) -> None:
        def model(x: Array) -> None:
            loc = numpyro.param("prior_loc", 3.0)
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(loc, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

        case = Programs(model, guide, (programs.data(),))
        objectives = [
            TraceMMD_ELBO(1.0, 5.0, estimator=estimator)
            for estimator in ("unbiased", "biased", "closed_form")
        ]
        for _, grads in seeded(*objectives, case=case):
            assert grads["prior_loc"] > 0, "the prior should move towards the posterior"
            assert grads["loc"] != 0

    def test_the_penalty_reaches_the_latents_that_the_prior_depends_on(self) -> None:
        objectives = Trace_ELBO(), TraceMMD_ELBO(0.0, 50.0, base=Trace_ELBO())
        (_, base), (_, ours) = seeded(*objectives, case=programs.hierarchical())
        assert ours["theta_loc"] != pytest.approx(float(base["theta_loc"]))

    @pytest.mark.parametrize("particles", [1, 3])
    def test_the_likelihood_is_not_computed_for_the_prior(self, particles: int) -> None:
        calls: list[str] = []

        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                try:
                    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                except Exception:
                    z = jnp.zeros(len(x))
                calls.append("decoder")
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(x[:, 0], 1.0))

        case = Programs(model, guide, (programs.data(),))
        evaluate_shapes(TraceMMD_ELBO(prior_draws=5, num_particles=particles), case)
        assert calls == ["decoder"]

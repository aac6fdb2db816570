"""TraceMMD_ELBO compares q(z) with the prior that the model has there."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import PARTICLES, averages_to, penalty, seeded


class TestUnbiased:
    """Where the guide draws from the prior, the penalty averages to 0."""

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize(
        "case",
        [
            programs.hierarchical(exact=True),
            programs.two_latents(exact=True),
            programs.covariate_prior(exact=True),
        ],
        ids=["hierarchical", "two latents", "covariates"],
    )
    def test_exact_conditional_prior(self, case: Programs, particles: dict) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, **particles)
        values = [penalty(objective, case, seed=i) for i in range(250)]
        assert averages_to(values, 0.0)
        assert torch.tensor(values).std() > 0

    def test_the_prior_is_drawn_for_the_same_minibatch(self) -> None:
        """Guide and prior are all but the same points, so that even the biased MMD² is 0."""

        def narrow(x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=5) as index:
                pyro.sample("z", dist.Normal(x[index, 0], 1e-6))

        case = Programs(narrow, narrow, (programs.data(200),))
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="biased")
        assert penalty(objective, case, seed=0) == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "closed_form"])
    def test_masked_rows_of_the_prior_count_for_nothing(self, estimator: str) -> None:
        model, guide, (x,) = programs.covariate_prior()
        mask = torch.arange(len(x)) % 3 != 0
        model, guide = (pyro.poutine.mask(program, mask=mask) for program in (model, guide))
        moved = torch.where(mask.unsqueeze(-1), x, x + 50.0)
        objective = TraceMMD_ELBO(0.0, 2.0, estimator=estimator)
        first, second = (
            penalty(objective, Programs(model, guide, (data,)), seed=0) for data in (x, moved)
        )
        assert first == pytest.approx(second, rel=1e-9)

    def test_a_joint_mismatch_is_seen_that_no_marginal_shows(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
                z2 = pyro.sample("z2", dist.Normal(0.9 * z1, math.sqrt(1 - 0.81)))
                pyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z1", dist.Normal(0.0, 1.0))
                pyro.sample("z2", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, (programs.data(60),))
        objective = TraceMMD_ELBO(0.0, 2.0)
        values = torch.tensor([penalty(objective, case, seed=i) for i in range(60)])
        assert values.mean() > 8 * values.std() / math.sqrt(60)

    def test_particles_of_a_global_latent(self) -> None:
        """Outside plates N is 1 and the particles are the rows: θ ~ N(1.5, 0.8) against N(0, 1)."""
        case = programs.hierarchical(exact=True)
        settings = {"sites": ["theta"], "num_particles": 6}
        closed, sampled = (
            TraceMMD_ELBO(0.0, 2.0, estimator=estimator, **settings)
            for estimator in ("closed_form", "unbiased")
        )
        expected = (
            math.sqrt(1 / (1 + 2 * 0.64))
            + math.sqrt(1 / 3)
            - 2 * math.sqrt(1 / 2.64) * math.exp(-(1.5**2) / (2 * 2.64))
        )
        assert penalty(closed, case, seed=0) == pytest.approx(expected, rel=1e-9)
        assert averages_to([penalty(sampled, case, seed=i) for i in range(150)], expected)


class TestPriors:
    def test_a_learned_prior_feels_the_penalty(self) -> None:
        def model(x: Tensor) -> None:
            loc = pyro.param("prior_loc", torch.tensor(3.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(loc, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

        case = Programs(model, guide, (programs.data(),))
        for estimator in ("unbiased", "biased", "closed_form"):
            _, grads = seeded(TraceMMD_ELBO(1.0, 5.0, estimator=estimator), case)
            assert grads["prior_loc"] > 0, "the prior should move towards the posterior"
            assert grads["loc"] != 0

    def test_the_penalty_reaches_the_latents_that_the_prior_depends_on(self) -> None:
        case = programs.hierarchical()
        base = seeded(Trace_ELBO(), case)[1]["theta_loc"]
        ours = seeded(TraceMMD_ELBO(0.0, 50.0, base=Trace_ELBO()), case)[1]["theta_loc"]
        assert ours != pytest.approx(float(base))

    def test_the_likelihood_is_not_computed_for_the_prior(self) -> None:
        calls: list[str] = []

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                calls.append("decoder")
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

        TraceMMD_ELBO(prior_draws=5).loss(model, guide, programs.data())
        assert calls == ["decoder"]

    def test_a_model_that_catches_exceptions_is_still_left_after_its_latents(self) -> None:
        reached = []

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                try:
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                except Exception:
                    z = torch.zeros(len(x))
                reached.append("likelihood")
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

        TraceMMD_ELBO().loss(model, guide, programs.data())
        assert reached == ["likelihood"]
        with warnings.catch_warnings():
            TraceMMD_ELBO(prior_draws=3).loss(model, guide, programs.data())
        assert reached == ["likelihood"] * 2

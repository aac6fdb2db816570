"""TraceMMD_ELBO's value: the formula, its scale, its estimators."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.kernels import IMQ, RBF
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.steps import PARTICLES, averages_to, penalty, seeded


class TestFormula:
    """Written out for a case whose every draw is known."""

    @pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
    def test_equals_the_formula(self, alpha: float) -> None:
        model, guide, (x,) = programs.vae()
        objective = TraceMMD_ELBO(alpha, 7.0, RBF(1.3), estimator="biased", base=Trace_ELBO())
        loss, _ = seeded(objective, Programs(model, guide, (x,)))

        pyro.set_rng_seed(3)
        loc = x @ pyro.param("encoder").detach()
        scale = pyro.param("scale").detach()
        z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        prior = torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        standard = dist.Normal(0.0, 1.0)
        likelihood = dist.Normal(torch.tanh(z) @ pyro.param("decoder").detach(), 0.7)
        kl = (dist.Normal(loc, scale).log_prob(z) - standard.log_prob(z)).sum()

        def mean_kernel(a: Tensor, b: Tensor) -> float:
            pairs = [math.exp(-float(((p - q) ** 2).sum()) / (2 * 1.3**2)) for p in a for q in b]
            return sum(pairs) / len(pairs)

        mmd = mean_kernel(z, z) + mean_kernel(prior, prior) - 2 * mean_kernel(z, prior)
        expected = -likelihood.log_prob(x).sum() + (1 - alpha) * kl + 12 * (alpha + 6) * mmd
        assert loss == pytest.approx(float(expected), rel=1e-10)

    def test_subsampled_kl_is_weighted_at_full_scale(self) -> None:
        case = programs.vae(num=20, batch=5)
        zero, one = (
            seeded(TraceMMD_ELBO(alpha, 1.0 - alpha + 1e-9), case)[0] for alpha in (0.0, 0.5)
        )
        pyro.set_rng_seed(3)
        index = torch.randperm(20)[:5]
        loc = case.args[0][index] @ pyro.param("encoder").detach()
        q = dist.Normal(loc, pyro.param("scale").detach())
        kl = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum() * 20 / 5
        assert zero - one == pytest.approx(0.5 * float(kl), rel=1e-6)

    def test_a_weight_of_zero_removes_an_infinite_kl(self) -> None:
        def guide(x: Tensor) -> None:
            weight = pyro.param("weight", torch.ones(3, 2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(x @ weight, event_dim=1))

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                prior = dist.Uniform(-1e-3 * torch.ones(2), 1e-3, validate_args=False).to_event(1)
                z = pyro.sample("z", prior)
                pyro.sample(
                    "x", dist.Normal(z.sum(-1, True), 1.0).expand((12, 3)).to_event(1), obs=x
                )

        case = Programs(model, guide, (programs.data(),))
        pyro.enable_validation(False)
        loss, grads = seeded(TraceMMD_ELBO(1.0, 5.0), case)
        assert math.isfinite(loss)
        assert torch.isfinite(grads["weight"]).all()
        assert grads["weight"].abs().max() > 0


class TestScale:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_expected_penalty_ignores_the_batch_size(self, particles: dict) -> None:
        means, errors = [], []
        for batch, repeats in ((32, 150), (256, 20)):
            objective = TraceMMD_ELBO(0.0, 2.0, **particles)
            case = programs.vae(num=1000, batch=batch)
            values = torch.tensor([penalty(objective, case, seed=i) for i in range(repeats)])
            means.append(float(values.mean()))
            errors.append(float(values.std()) / math.sqrt(repeats))
        assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
        assert min(means) > 8 * max(errors), "too little signal to tell the batch sizes apart"

    def test_expected_penalty_doubles_with_the_data(self) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        model, guide, (x,) = programs.vae(num=1000, batch=200)
        single, double = (
            torch.tensor(
                [penalty(objective, Programs(model, guide, (d,)), seed=i) for i in range(30)]
            )
            for d in (x, x.repeat(2, 1))
        )
        error = math.hypot(2 * float(single.std()), float(double.std())) / math.sqrt(30)
        assert abs(2 * float(single.mean()) - float(double.mean())) < 4 * error
        assert float(double.mean()) > 8 * error

    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        case = programs.vae()
        scaled = Programs(
            pyro.poutine.scale(case.model, 0.1), pyro.poutine.scale(case.guide, 0.1), case.args
        )
        objective = TraceMMD_ELBO(0.0, 3.0)
        seeded(objective, case)
        assert penalty(objective, case, seed=5) == pytest.approx(penalty(objective, scaled, seed=5))

    def test_masked_rows_count_for_nothing(self) -> None:
        model, guide, (x,) = programs.masked_vae()
        objective = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form")
        seeded(objective, Programs(model, guide, (x,)))
        moved = x.clone()
        moved[::3] += 100.0
        first, second = (
            penalty(objective, Programs(model, guide, (d,)), seed=5) for d in (x, moved)
        )
        assert first == pytest.approx(second, rel=1e-12)
        assert first != pytest.approx(penalty(objective, Programs(model, guide, (2 * x,)), seed=5))


class TestEstimators:
    def test_closed_form_is_the_mean_of_the_unbiased_one(self) -> None:
        case = programs.vae(num=16)
        closed = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=4, num_particles=8, vectorize_particles=True)
        values = [penalty(sampled, case, seed=i) for i in range(150)]
        first, second = (penalty(closed, case, seed=i) for i in range(2))
        assert first == second
        assert averages_to(values, first)

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_closed_form_ignores_particles(self, particles: dict) -> None:
        case = programs.vae()
        one = penalty(TraceMMD_ELBO(0.0, 2.0, estimator="closed_form"), case, seed=1)
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", **particles)
        assert penalty(objective, case, seed=1) == pytest.approx(one, rel=1e-9)

    def test_biased_is_not_negative(self) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, IMQ(), estimator="biased")
        assert min(penalty(objective, programs.vae(), seed=i) for i in range(50)) >= 0

    def test_prior_draws_lower_the_variance(self) -> None:
        one, many = (
            torch.tensor(
                [
                    penalty(TraceMMD_ELBO(0.0, 2.0, prior_draws=k), programs.vae(), seed=i)
                    for i in range(80)
                ]
            )
            for k in (1, 16)
        )
        assert many.var() < 0.7 * one.var()

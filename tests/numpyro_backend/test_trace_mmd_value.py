"""TraceMMD_ELBO's value: the formula, its scale, its estimators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import norm

from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.kernels import IMQ, RBF
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import (
    PARTICLES,
    averages_to,
    initial,
    losses,
    penalties,
    penalty,
    seeded,
)

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestFormula:
    """Written out for a case whose every draw is known."""

    def test_equals_the_formula(self) -> None:
        case = programs.vae()
        model, guide, (x,) = case
        params = initial(case)
        alphas = 0.0, 0.4, 1.0
        objectives = [
            TraceMMD_ELBO(alpha, 7.0, RBF(1.3), estimator="biased", base=Trace_ELBO())
            for alpha in alphas
        ]

        def draw(program: Callable[..., Any], key: Array) -> np.ndarray:
            seeded_program = handlers.seed(handlers.substitute(program, data=params), key)
            trace = handlers.trace(seeded_program).get_trace
            return np.asarray(jax.jit(lambda: trace(x)["z"]["value"])())

        _, guide_key, penalty_key = jax.random.split(jax.random.key(3), 3)
        z = draw(guide, guide_key)
        prior = draw(model, jax.random.split(jax.random.split(penalty_key, 1)[0], (1, 1))[0, 0])
        q, decoder = norm(x @ params["encoder"], params["scale"]), np.asarray(params["decoder"])
        likelihood = norm.logpdf(x, np.tanh(z) @ decoder, 0.7).sum()
        kl = (q.logpdf(z) - norm.logpdf(z)).sum()

        def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
            pairs = [math.exp(-float(((p - q) ** 2).sum()) / (2 * 1.3**2)) for p in a for q in b]
            return sum(pairs) / len(pairs)

        mmd = mean_kernel(z, z) + mean_kernel(prior, prior) - 2 * mean_kernel(z, prior)
        for alpha, loss in zip(alphas, losses(*objectives, case=case), strict=True):
            expected = -likelihood + (1 - alpha) * kl + 12 * (alpha + 6) * mmd
            assert loss == pytest.approx(float(expected), rel=1e-10)

    def test_subsampled_kl_is_weighted_at_full_scale(self) -> None:
        case = programs.vae(num=20, batch=5)
        params = initial(case)
        objectives = [TraceMMD_ELBO(alpha, 1.0 - alpha + 1e-9) for alpha in (0.0, 0.5)]
        zero, one = losses(*objectives, case=case)
        _, guide_key = jax.random.split(jax.random.key(3))
        guide = handlers.trace(handlers.seed(case.guide, guide_key))
        index = jax.jit(lambda: guide.get_trace(*case.args)["data"]["value"])()
        loc = case.args[0][index] @ params["encoder"]
        scale = params["scale"]
        kl = (0.5 * (scale**2 + loc**2 - 1) - jnp.log(scale)).sum() * 20 / 5
        assert zero - one == pytest.approx(0.5 * float(kl), rel=1e-6)

    def test_a_weight_of_zero_removes_an_undefined_kl(self) -> None:
        def guide(x: Array) -> None:
            weight = numpyro.param("weight", jnp.ones((3, 2)))
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Delta(x @ weight, event_dim=1))  # of either sign

        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                prior = dist.Gamma(2 * jnp.ones(2), 1.0).to_event(1)
                z = numpyro.sample("z", prior)
                numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

        bases = None, Trace_ELBO(), TraceMeanField_ELBO()
        objectives = [TraceMMD_ELBO(1.0, 5.0, base=base) for base in bases]
        for loss, grads in seeded(*objectives, case=Programs(model, guide, (programs.data(),))):
            assert math.isfinite(loss)
            assert jnp.isfinite(grads["weight"]).all()
            assert jnp.abs(grads["weight"]).max() > 0


class TestScale:
    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        case = programs.vae()
        scaled = Programs(
            handlers.scale(case.model, scale=0.1), handlers.scale(case.guide, scale=0.1), case.args
        )
        objective = TraceMMD_ELBO(0.0, 3.0)
        assert penalty(objective, case) == pytest.approx(penalty(objective, scaled))

    def test_masked_rows_count_for_nothing(self) -> None:
        model, guide, (x,) = programs.masked_vae()
        objective = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form")
        moved = x.copy()
        moved[::3] += 100.0
        first, second, other = (
            penalty(objective, Programs(model, guide, (rows,))) for rows in (x, moved, 2 * x)
        )
        assert first == pytest.approx(second, rel=1e-12)
        assert first != pytest.approx(other)


class TestEstimators:
    def test_closed_form_is_the_mean_of_the_unbiased_one(self) -> None:
        case = programs.vae(num=16)
        one, three = (
            penalties(TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", **particles), case, 2)
            for particles in (PARTICLES["one"], PARTICLES["mapped"])
        )
        np.testing.assert_allclose([one[1], *three], one[0], rtol=1e-9)
        sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=2, num_particles=4)
        assert averages_to(penalties(sampled, case, 150), float(one[0]))

    def test_biased_is_not_negative(self) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, IMQ(), estimator="biased")
        assert penalties(objective, programs.vae(), 50).min() >= 0

    def test_prior_draws_lower_the_variance(self) -> None:
        one, many = (
            penalties(TraceMMD_ELBO(0.0, 2.0, prior_draws=k), programs.vae(), 80) for k in (1, 16)
        )
        assert many.var() < 0.7 * one.var()

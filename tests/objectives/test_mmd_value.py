"""TraceMMD_ELBO's value: the formula, its estimators, the groups of its latents."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests import reference
from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Case, Half, OrderedDraws
from tests.objectives.alone import in_both, in_numpyro, slow_in_numpyro
from tests.objectives.statistics import averages_to
from tests.shared_programs import MINIBATCH, PARAMS, PROGRAMS, X, nested, vae

LOC, SCALE = X @ PARAMS["encoder"], PARAMS["scale"]


class TestFormula:
    """Written out for a case whose every draw is known."""

    def test_equals_the_formula(self, half: Half) -> None:
        alphas = 0.0, 0.4, 1.0
        kernel, base = half.library.RBF(1.3), half.infer.Trace_ELBO()
        settings = {"estimator": "biased", "base": base}
        elbos = [half.library.TraceMMD_ELBO(a, 7.0, kernel, **settings) for a in alphas]
        steps = half.steps(elbos, vae(half), draws=OrderedDraws)

        draws = OrderedDraws()
        z = LOC + SCALE * draws.normal((12, 2))
        prior = PARAMS["prior_loc"] + draws.normal((12, 2))
        likelihood = norm.logpdf(X, np.tanh(z) @ PARAMS["decoder"], 0.7).sum()
        kl = (norm.logpdf(z, LOC, SCALE) - norm.logpdf(z, PARAMS["prior_loc"])).sum()
        mmd = reference.mmd_squared(z, prior, reference.rbf([1.3]), estimator="biased")
        for alpha, step in zip(alphas, steps, strict=True):
            expected = -likelihood + (1 - alpha) * kl + 12 * (alpha + 6) * mmd
            assert step.loss == pytest.approx(float(expected), rel=1e-10)

    @slow_in_numpyro
    def test_subsampled_kl_is_weighted_at_full_scale(self, half: Half) -> None:
        elbos = [half.library.TraceMMD_ELBO(alpha, 1 - alpha + 1e-9) for alpha in (0.0, 0.5)]
        zero, one = half.losses(elbos, vae(half, index=MINIBATCH), count=1)[:, 0]
        gap = LOC[MINIBATCH] - PARAMS["prior_loc"]
        kl = (0.5 * (SCALE**2 + gap**2 - 1) - np.log(SCALE)).sum() * 12 / 5
        assert zero - one == pytest.approx(0.5 * float(kl), rel=1e-6)

    @in_both("support", ["beside it", "half of it"], quick=[])
    def test_a_weight_of_zero_removes_a_kl_without_value(self, half: Half, support: str) -> None:
        """Of a point mass where the prior has no density."""
        x = half.xp.asarray(X)

        def prior() -> Any:
            if support == "beside it":
                return half.dist.Uniform(-1e-3 * half.xp.ones(2), 1e-3)
            return half.dist.Gamma(2 * half.xp.ones(2), 1.0)

        def model() -> None:
            with half.plate("data", 12):
                z = half.sample("z", prior().to_event(1))
                half.sample("x", half.dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

        def guide() -> None:
            weight = half.param("weight", np.ones((3, 2)))
            with half.plate("data", 12):
                half.sample("z", half.dist.Delta(x @ weight, event_dim=1))

        bases = None, half.infer.Trace_ELBO(), half.infer.TraceMeanField_ELBO()
        elbos = [half.library.TraceMMD_ELBO(1.0, 5.0, base=base) for base in bases]
        with half.unvalidated():
            steps = half.steps(elbos, Case(model, guide))
        for step in steps:
            assert math.isfinite(step.loss)
            assert np.isfinite(step.grads["weight"]).all()
            assert np.abs(step.grads["weight"]).max() > 0


class TestEstimators:
    @slow_in_numpyro
    def test_closed_form_has_no_noise_and_unbiased_is_of_infinitely_many_data(
        self, half: Half
    ) -> None:
        elbo, case = half.library.TraceMMD_ELBO, vae(half)
        closed = elbo(0.0, 2.0, estimator="closed_form")
        first, second = half.penalties(closed, case, count=2)
        assert first == pytest.approx(second, rel=1e-9)
        normals = LOC, SCALE + 0 * LOC, PARAMS["prior_loc"] + 0 * LOC, 1 + 0 * LOC
        of_data, of_law = (
            12 * reference.mmd_squared_normal(*normals, [math.sqrt(2)], batch_size=12, **options)
            for options in ({"estimator": "biased"}, {})
        )
        assert first == pytest.approx(of_data, rel=1e-9)
        sampled = elbo(0.0, 2.0, prior_draws=2, **VECTORISED)
        assert averages_to(half.penalties(sampled, case, count=100), of_law)
        for particles in [LOOPED] if half.compiles else [LOOPED, VECTORISED]:
            pooled = elbo(0.0, 2.0, estimator="closed_form", **particles)
            assert half.penalty(pooled, case) == pytest.approx(first, rel=1e-9)

    @slow_in_numpyro
    def test_biased_is_not_negative(self, half: Half) -> None:
        kernel = half.library.kernels.IMQ()
        objective = half.library.TraceMMD_ELBO(0.0, 2.0, kernel, estimator="biased")
        assert half.penalties(objective, vae(half), count=50).min() >= 0

    @slow_in_numpyro
    def test_prior_draws_lower_the_variance(self, half: Half) -> None:
        base = half.infer.TraceMeanField_ELBO()
        elbo, case = partial(half.library.TraceMMD_ELBO, 0.0, 2.0, base=base), vae(half)
        plain, *draws = half.losses([base, *(elbo(prior_draws=k) for k in (1, 16))], case, count=80)
        one, many = (values - plain for values in draws)
        assert many.var() < 0.7 * one.var()


class TestGroups:
    """Latents in several stacks of plates."""

    def test_each_has_its_own_scale(self, half: Half) -> None:
        """N is 6 for the groups and 24 for the items; for a point mass at 0 the MMD is known."""

        def model() -> None:
            standard = half.dist.Normal(half.xp.zeros((6, 2)), 1.0).to_event(1)
            with half.plate("groups", 6):
                outer = half.sample("outer", standard)
                with half.plate("items", 4, dim=-2):
                    z = half.sample("z", half.dist.Normal(outer, 1.0).to_event(1))
                    half.sample("x", half.dist.Normal(z.sum(-1), 1.0), obs=half.xp.zeros((4, 6)))

        def guide() -> None:
            with half.plate("groups", 6):
                zero = half.xp.zeros((6, 2)) * half.param("one", 1.0)
                half.sample("outer", half.dist.Delta(zero, event_dim=1))
                with half.plate("items", 4, dim=-2):
                    zeros = half.xp.zeros((4, 6, 2)) * zero
                    half.sample("z", half.dist.Delta(zeros, event_dim=1))

        # d=2 and ℓ²=2; the items' prior, N(outer, 1), is the standard normal here as well.
        expected = 1 + 2 / (2 + 2) - 2 * 2 / (2 + 1)
        base = half.infer.Trace_ELBO()
        elbo = partial(half.library.TraceMMD_ELBO, 0.0, 2.0, estimator="closed_form", base=base)
        elbos = [elbo(sites=sites) for sites in (["outer"], ["z"], None)]
        values = half.above(base, elbos, Case(model, guide))
        np.testing.assert_allclose(values, expected * np.array([6, 24, 6 + 24]), rtol=1e-9)

    @slow_in_numpyro
    def test_add_up(self, half: Half) -> None:
        base = half.infer.TraceMeanField_ELBO()
        elbo = partial(half.library.TraceMMD_ELBO, 0.0, 2.0, estimator="closed_form", base=base)
        elbos = [elbo(sites=sites) for sites in (None, ["outer"], ["z"])]
        both, outer, inner = half.above(base, elbos, nested(half))
        assert both == pytest.approx(outer + inner, rel=1e-9)
        assert min(abs(outer), abs(inner)) > 1e-3

    @in_both("name", ["nested", "ragged"], quick=[])
    def test_gradients_are_finite(self, half: Half, name: str) -> None:
        particles = [VECTORISED] if half.compiles else [ONE, LOOPED, VECTORISED]
        elbos = [half.library.TraceMMD_ELBO(0.5, 10.0, **kw) for kw in particles]
        for loss, grads in half.steps(elbos, PROGRAMS[name](half)):
            assert math.isfinite(loss)
            assert all(np.isfinite(grad).all() for grad in grads.values())


@pytest.mark.slow
@in_numpyro
def test_composes_with_itself_over_particles(half: Half) -> None:
    elbo, library = half.library.TraceMMD_ELBO, half.library
    stock = half.infer.TraceMeanField_ELBO(num_particles=3)
    inner = elbo(0.0, 3.0, library.RBF(1.0), base=stock)
    flat, outer = (elbo(0.0, 5.0, library.IMQ(), base=base) for base in (stock, inner))
    zero, one, other, both = half.losses([stock, inner, flat, outer], vae(half), count=1)[:, 0]
    assert both == pytest.approx(one + other - zero, rel=1e-9)

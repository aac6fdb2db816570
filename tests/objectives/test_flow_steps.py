"""The steps that a flow takes, its log weights and its force, against a loop in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests.halves import Case, Half, NumbersOfShape
from tests.objectives.alone import in_both, in_pyro, slow_in_numpyro
from tests.objectives.flows import fixed, flow
from tests.shared_programs import vae

WEIGHT = np.random.default_rng(0).normal(size=(3, 2))
DATA = np.random.default_rng(1).normal(size=(4, 3))
MASK = np.array([True, True, False, True])


def noise(*shape: int) -> np.ndarray:
    return NumbersOfShape().normal(shape)


def leapfrog(
    force: Callable[[np.ndarray], np.ndarray], u: np.ndarray, rho: np.ndarray, *steps: Any
) -> np.ndarray:
    for step in steps:
        rho = rho + step / 2 * force(u)
        u = u + step * rho
        rho = rho + step / 2 * force(u)
    return u


# The number of data, of rows of the minibatch, and the user's scale of the prior.
TRIALS = {
    "whole": (4, 4, 1.0),
    "masked, per step": (100, 4, 1.0),
    "subsampled": (6400, 2, 1.0),
    "masked, scaled": (100, 4, 0.3),
    "hardly any prior": (4, 4, 1e-9),
}


class TestLinearGaussian:
    """z ~ N(0, I) and x | z ~ N(W z, 0.5), under plates, masks, and a scale of the user's."""

    def case(self, half: Half, *, total: int, rows: int, mask: Any, scale: float) -> Case:
        x, weight = (half.xp.asarray(array) for array in (DATA[:rows], WEIGHT))
        zeros = half.xp.zeros((rows, 2))

        def model() -> None:
            with half.plate("data", total, index=np.arange(rows)), half.mask(mask):
                with half.scale(scale):
                    z = half.sample("z", half.dist.Normal(zeros, 1.0).to_event(1))
                half.sample("x", half.dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

        def guide() -> None:
            plate = half.plate("data", total, index=np.arange(rows))
            with plate, half.mask(mask), half.scale(scale):
                half.sample("z", half.dist.Normal(zeros + 0.3, 0.8).to_event(1))

        return Case(model, guide)

    @in_both("name", TRIALS, quick=["masked, per step"])
    def test_steps_and_log_weights_equal_a_loop(self, half: Half, name: str) -> None:
        total, rows, scale = TRIALS[name]
        masked, per_step = "masked" in name, "per step" in name
        mask, x = MASK if masked else np.ones(4, bool)[:rows], DATA[:rows]
        sizes = np.array([[0.1, 0.2], [0.15, 0.05], [0.2, 0.1]])[: 3 if per_step else 1]
        step_size = half.xp.asarray(sizes if per_step else sizes[0])
        num_steps, beta_0 = 3, 0.4
        elbo = fixed(half, num_steps, step_size, beta_0=beta_0, per_step=per_step)
        case = self.case(half, total=total, rows=rows, mask=mask, scale=scale)
        end = half.draw(elbo.refine(case.model, case.guide), case, NumbersOfShape)["z"]
        (step,) = half.steps([elbo], case, draws=NumbersOfShape)

        def force(u: np.ndarray) -> np.ndarray:
            return (-scale * u + (x - u @ WEIGHT.T) @ WEIGHT / 0.25) * mask[:, None]

        def inverse_temperature(k: int) -> float:
            return ((1 - beta_0**-0.5) * (k / num_steps) ** 2 + beta_0**-0.5) ** -2

        start, rho_0 = 0.3 + 0.8 * noise(rows, 2), noise(rows, 2) / math.sqrt(beta_0)
        u, rho = start, rho_0
        for k in range(1, num_steps + 1):
            epsilon = sizes[k - 1 if per_step else 0]
            rho = rho + epsilon / 2 * force(u)
            u = u + epsilon * rho
            rho = rho + epsilon / 2 * force(u)
            rho = rho * math.sqrt(inverse_temperature(k - 1) / inverse_temperature(k))
        np.testing.assert_allclose(end, u, rtol=1e-11)
        if scale != 1:
            return  # the user's weights are no density
        log_weights = (
            norm.logpdf(u)
            - norm.logpdf(start, 0.3, 0.8)
            + norm.logpdf(rho)
            - norm.logpdf(rho_0, 0.0, beta_0**-0.5)
        ).sum(-1) + norm.logpdf(x, u @ WEIGHT.T, 0.5).sum(-1)
        log_weights += math.log(beta_0)  # d / 2 = 1
        expected = -(log_weights * mask).sum() * total / rows
        assert step.loss == pytest.approx(expected, rel=1e-11)


def test_force_on_a_constrained_latent_has_the_jacobian(half: Half) -> None:
    """rate ~ Gamma(3, 2), x ~ Poisson(rate), u = log rate: ℓ = (3 + x) u - 3 exp(u), row by row.

    With a scale c of the user's on the prior alone ℓ = c (2 u - 2 exp(u)) + x u - exp(u) + u.
    """
    x = np.array([4.0, 1.0, 0.0, 2.0])
    for scale in (1.0, 0.3):

        def model(scale: float = scale) -> None:
            with half.plate("data", 100, index=np.arange(4)), half.mask(MASK):
                with half.scale(scale):
                    rate = half.sample("rate", half.dist.Gamma(3.0 + 0 * half.xp.ones(4), 2.0))
                half.sample("x", half.dist.Poisson(rate), obs=half.xp.asarray(x))

        def guide(scale: float = scale) -> None:
            loc = half.xp.asarray(np.linspace(-0.5, 0.5, 4))
            with half.plate("data", 100, index=np.arange(4)), half.mask(MASK), half.scale(scale):
                half.sample("rate", half.dist.LogNormal(loc, 0.3))

        def force(u: np.ndarray, scale: float = scale) -> np.ndarray:
            return (scale * (2 - 2 * np.exp(u)) + x - np.exp(u) + 1) * MASK

        elbo = fixed(half, 2, 0.1, tempering="none")
        end = half.draw(elbo.refine(model, guide), Case(model, guide), NumbersOfShape)["rate"]
        start = np.linspace(-0.5, 0.5, 4) + 0.3 * noise(4)
        expected = np.exp(leapfrog(force, start, noise(4), 0.1, 0.1))
        np.testing.assert_allclose(end, expected, rtol=1e-10)


def test_a_support_that_depends_on_another_latent(half: Half) -> None:
    """b ~ Uniform(0, a): where the flow moves a, b = a sigmoid(u_b) moves with it.

    ℓ = -2 u_a² + log sigmoid(u_b) + log sigmoid(-u_b) for a = exp(u_a).
    """

    def model() -> None:
        a = half.sample("a", half.dist.LogNormal(0.0, 0.5))
        half.sample("b", half.dist.Uniform(0.0, a))

    def guide() -> None:
        a = half.sample("a", half.dist.LogNormal(0.0, 0.5))
        sigmoid = half.dist.transforms.SigmoidTransform()
        affine = half.dist.transforms.AffineTransform(0.0, a)
        normal = half.dist.Normal(half.xp.asarray(0.2), 1.0)
        half.sample("b", half.dist.TransformedDistribution(normal, [sigmoid, affine]))

    def force(u: np.ndarray) -> np.ndarray:
        return np.array([-4 * u[0], -np.tanh(u[1] / 2)])

    elbo = fixed(half, 2, 0.1, tempering="none")
    end = half.draw(elbo.refine(model, guide), Case(model, guide), NumbersOfShape)
    momentum = np.full(2, float(noise()))
    start = np.array([0.5 * float(noise()), 0.2 + float(noise())])
    u_a, u_b = leapfrog(force, start, momentum, 0.1, 0.1)
    np.testing.assert_allclose(end["a"], np.exp(u_a), rtol=1e-10)
    np.testing.assert_allclose(end["b"], np.exp(u_a) / (1 + np.exp(-u_b)), rtol=1e-10)


@slow_in_numpyro
def test_prefactors_weight_the_terms(half: Half) -> None:
    """The loss is linear in each prefactor, and the slopes add up to it."""
    factors = [np.ones(6), *(np.ones(6) + np.eye(6)), np.array([0.0, 1, 1, 1, 1, 1])]
    elbos = [
        fixed(
            half,
            step_size=0.1,
            logp_prefactor=tuple(f[:3].tolist()),
            logq_prefactor=tuple(f[3:].tolist()),
        )
        for f in factors
    ]
    case = vae(half, x=DATA)
    loss, *losses, without = half.losses(elbos, case, count=1)[:, 0]
    slopes = np.array(losses) - loss
    assert slopes.sum() == pytest.approx(loss, rel=1e-9)
    assert without == pytest.approx(loss - slopes[0], rel=1e-9)
    # log(beta_0 / beta_K) d / 2 for each of 4 data in 2 dimensions.
    assert slopes[5] == pytest.approx(-4 * math.log(0.5), rel=1e-9)


class TestPenalised:
    """A flow below a penalised objective."""

    @slow_in_numpyro
    def test_alpha_leaves_the_trajectory_unchanged(self, half: Half) -> None:
        """The penalty sees the refined latents, whatever the objective weights."""
        case, elbo, log = vae(half), flow(half, 4, 0.2), list[Any]()

        def keep(rows: Any) -> Any:
            log.append(rows.values)
            return 0.0 * rows.values.sum()

        end = half.draw(elbo.refine(case.model, case.guide), case, NumbersOfShape)["z"]
        objectives = [
            half.library.TraceMMD_ELBO(alpha, 5.0, base=elbo, regularizer=keep)
            for alpha in (0.0, 0.9)
        ]
        for objective in objectives:
            ((rows,),) = half.seen(log, objective, case, draws=NumbersOfShape)
            np.testing.assert_array_equal(rows, end)
        none, most = half.losses(objectives, case, count=1)[:, 0]
        assert none != most

    @in_pyro
    @pytest.mark.parametrize("estimator", ["unbiased", "closed_form"])
    def test_sees_those_of_an_automatic_guide(self, half: Half, estimator: str) -> None:
        case, elbo, log = vae(half), fixed(half, 4, 0.2), list[Any]()
        case = case._replace(guide=half.auto("AutoNormal", case.model, *case.args))

        def keep(rows: Any) -> Any:
            log.append(rows.values)
            return 0.0 * rows.values.sum()

        objective = half.library.TraceMMD_ELBO(
            0.0, 5.0, estimator=estimator, base=elbo, regularizer=keep
        )
        ((rows,),) = half.seen(log, objective, case, draws=NumbersOfShape)
        end = half.draw(elbo.refine(case.model, case.guide), case, NumbersOfShape)["z"]
        np.testing.assert_allclose(rows, end, rtol=1e-12)
        assert math.isfinite(half.loss(objective, case))

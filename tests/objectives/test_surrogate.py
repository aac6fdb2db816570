"""A flow of a global latent along weighted rows of a plate, whatever minibatch is scored."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import numpyro
import pyro
import pytest

from pyro_infovae._core.sites import Plate
from pyro_infovae._core.surrogate import Survey, surrogate_of
from pyro_infovae.compile import CompiledSVI
from tests.halves import Case, Half, NumbersOfShape
from tests.objectives.alone import in_both, in_numpyro, in_pyro, slow_in_numpyro
from tests.objectives.flows import (
    annealed,
    assert_evidence,
    assert_gradients,
    flow,
    log_normal,
)
from tests.objectives.test_annealed_steps import annealed_path

N = 20
DATA = np.random.default_rng(0).normal(0.7, 1.0, size=N)
EVIDENCE = log_normal(DATA, np.eye(N) + 1)
MINIBATCHES = np.random.default_rng(1).permutation(N).reshape(4, 5)
ROWS = surrogate_of(7, Survey({"data": Plate("data", -1, N, N)})).rows


def normal_mean(half: Half, *, scale: float = 1.0, **minibatch: Any) -> Case:
    """mu ~ N(0, 1), x_i ~ N(mu, 1)."""
    x = half.xp.asarray(DATA)

    def model() -> None:
        with half.scale(scale):
            mu = half.sample("mu", half.dist.Normal(0.0, 1.0))
            with half.plate("data", N, **minibatch) as index:
                half.sample("x", half.dist.Normal(mu, 1.0), obs=x[index])

    def guide() -> None:
        with half.scale(scale):
            half.sample("mu", half.dist.Normal(half.param("loc", 0.4), 0.4))

    return Case(model, guide)


def losses(half: Half, elbo: Any, *cases: Case) -> list[float]:
    return [half.steps([elbo], case, draws=NumbersOfShape)[0].loss for case in cases]


@in_both("rows", [7, 20], quick=[])
def test_minibatches_average_to_the_whole(half: Half, rows: int) -> None:
    """With the same noise: the path does not depend on the minibatch."""
    elbo = annealed(half, 3, 0.2, surrogate=rows)
    parts = [normal_mean(half, index=index) for index in MINIBATCHES]
    whole, *parts = losses(half, elbo, normal_mean(half), *parts)
    assert np.mean(parts) == pytest.approx(whole, rel=1e-12)
    assert np.std(parts) > 1


@slow_in_numpyro
def test_the_size_of_the_minibatch_changes_no_path(half: Half) -> None:
    elbo = annealed(half, 3, 0.2, surrogate={"data": 7})
    cases = [normal_mean(half, index=np.array(index)) for index in ([0], [7, 3], range(10))]
    first, *others = (half.draw(elbo.refine(*c[:2]), c, NumbersOfShape)["mu"] for c in cases)
    np.testing.assert_allclose(others, first, rtol=1e-14)


@slow_in_numpyro
def test_data_that_the_plate_looks_up_itself(half: Half) -> None:
    """By ``subsample``, which does nothing on the whole plate."""
    subsample = (numpyro if half.compiles else pyro).subsample

    def looking_up(case: Case, **minibatch: Any) -> Case:
        def model() -> None:
            mu = half.sample("mu", half.dist.Normal(0.0, 1.0))
            with half.plate("data", N, **minibatch):
                x = subsample(half.xp.asarray(DATA), event_dim=0)
                half.sample("x", half.dist.Normal(mu, 1.0), obs=x)

        return case._replace(model=model)

    elbo = annealed(half, 3, 0.2, surrogate=7)
    for minibatch in ({}, {"index": MINIBATCHES[0]}):
        case = normal_mean(half, **minibatch)
        ours, same = losses(half, elbo, looking_up(case, **minibatch), case)
        assert ours == pytest.approx(same, rel=1e-12)


@slow_in_numpyro
def test_rows_of_several_features(half: Half) -> None:
    """The plate of data is the left one of two, and a factor counts as data do."""
    x = half.xp.asarray(DATA.reshape(10, 2))

    def case(**minibatch: Any) -> Case:
        def model() -> None:
            mu = half.sample("mu", half.dist.Normal(0.0, 1.0))
            rows = half.plate("data", 10, dim=-2, **minibatch)
            with rows as index, half.plate("features", 2):
                half.factor("x", half.dist.Normal(mu, 1.0).log_prob(x[index]))

        return Case(model, normal_mean(half).guide)

    elbo = annealed(half, 3, 0.2, surrogate={"data": 4})
    halves = [case(index=index) for index in (np.arange(4), np.arange(4, 10))]
    whole, *parts = losses(half, elbo, case(), *halves)
    assert 0.4 * parts[0] + 0.6 * parts[1] == pytest.approx(whole, rel=1e-12)
    assert_gradients(half, case(), flow(half, 2, 0.2, path="annealed", surrogate={"data": 4}))


class TestLoss:
    @in_both("scale", [1.0, 0.05], quick=[1.0])
    def test_equals_a_loop(self, half: Half, scale: float) -> None:
        """The forces are of N / M times the rows; the loss is of the minibatch, and scaled."""
        noise, sizes = NumbersOfShape(), np.array([0.2, 0.3, 0.25])
        x, index = DATA[list(ROWS)], MINIBATCHES[1]
        path = annealed_path(
            lambda u: 0.4 * (-(0.4 + 0.4 * u) + N / 7 * (x - 0.4 - 0.4 * u).sum()),
            lambda u: -u,
            noise.normal(()),
            sizes,
            persistence=0.7,
            event_dim=0,
        )
        mu = 0.4 + 0.4 * path.end
        log_weight = -0.5 * mu**2 - 0.5 * math.log(2 * math.pi) + path.log_ratio
        log_weight += 0.5 * noise.normal(()) ** 2 + 0.5 * math.log(2 * math.pi * 0.16)
        residuals = DATA[index] - mu
        log_weight -= N / 5 * 0.5 * (residuals**2 + math.log(2 * math.pi)).sum()
        elbo = annealed(half, 3, half.xp.asarray(sizes), per_step=True, surrogate=7)
        (loss,) = losses(half, elbo, normal_mean(half, scale=scale, index=index))
        assert loss == pytest.approx(-log_weight * scale, rel=1e-10)

    @slow_in_numpyro
    def test_of_all_rows_is_that_without(self, half: Half) -> None:
        case = normal_mean(half)
        elbos = [annealed(half, 3, 0.2, surrogate=N), annealed(half, 3, 0.2)]
        with_all, without = half.steps(elbos, case, draws=NumbersOfShape)
        assert with_all.loss == pytest.approx(without.loss, rel=1e-12)
        assert with_all.grads["loc"] == pytest.approx(without.grads["loc"], rel=1e-10)


@in_both("rows", [3, 7], quick=[])
def test_weights_of_all_data_average_to_the_evidence(half: Half, rows: int) -> None:
    elbo = annealed(half, 4, 0.03 * rows, surrogate=rows)
    assert_evidence(half, normal_mean(half), EVIDENCE, elbo)


@in_both("checkpoint", [False, True], quick=[])
def test_gradients_equal_finite_differences(half: Half, checkpoint: bool) -> None:
    case = normal_mean(half, index=MINIBATCHES[0])
    elbo = flow(half, 3, 0.2, path="annealed", surrogate=7, checkpoint=checkpoint)
    slopes = assert_gradients(half, case, elbo)
    assert slopes["hamiltonian.surrogate_weights"].gradient != 0


NUM = 200


def regression(half: Half, *, seed: int = 0) -> Case:
    """A Bayesian logistic regression with correlated features, under ``AutoNormal``.

    The argument is the size of the minibatch.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(NUM, 5)) @ (np.eye(5) + 1) / 3
    labels = rng.random(NUM) < 1 / (1 + np.exp(-features @ rng.normal(size=5)))
    x, y = half.xp.asarray(features), half.xp.asarray(labels.astype(float))
    zeros = half.xp.zeros(5)

    def model(batch: int | None) -> None:
        w = half.sample("w", half.dist.Normal(zeros, 1.0).to_event(1))
        with half.plate("data", NUM, batch=batch) as index:
            logits = (x[index] * w).sum(-1)
            half.sample("y", half.dist.Bernoulli(logits=logits), obs=y[index])

    return Case(model, half.auto("AutoNormal", model, 20), (20,))


@pytest.mark.slow
def test_training_raises_the_bound(half: Half) -> None:
    """The weights are trained beside the rest."""
    elbo = flow(half, 3, None, path="annealed", surrogate=20)
    trained = half.trained(elbo, regression(half), steps=200, lr=0.03)
    before, after = trained.losses[:20], trained.losses[-100:]
    error = math.sqrt(before.var() / 20 + after.var() / 100)
    assert after.mean() < before.mean() - 4 * error
    weights = trained.params["hamiltonian.surrogate_weights"]
    assert (weights > 0).all()
    assert weights.std() > 0.01


@pytest.mark.slow
@in_numpyro
@pytest.mark.parametrize(("seed", "gain"), [(0, 1.3), (1, 0.8), (2, 0.08)])
def test_a_trained_surrogate_is_above_the_mean_field(half: Half, seed: int, gain: float) -> None:
    """By these nats, of the 2.6, 1.9 and 0.7 that the mean field is below log p(x)."""
    case = regression(half, seed=seed)
    settings = {"steps": 3000, "lr": 0.02, "decay": 0.1 ** (1 / 3000)}
    along, bounds = {"path": "annealed", "surrogate": 20}, []
    for elbo in (half.infer.Trace_ELBO(), flow(half, 4, 0.3, **along)):
        params = half.trained(elbo, case, **settings).params

        def loss(key: Any, elbo: Any = elbo, params: Any = params) -> Any:
            run = elbo.loss_with_mutable_state(key, params, case.model, case.guide, None)
            return run["loss"]

        keys = jax.random.split(jax.random.key(seed), 4000)
        bounds.append(-float(jax.jit(jax.vmap(loss))(keys).mean()))
    assert bounds[1] > bounds[0] + gain


@pytest.mark.slow
@in_pyro
def test_captured_steps_are_those_of_svi(half: Half) -> None:
    losses = []
    for kind in (pyro.infer.SVI, CompiledSVI):
        pyro.clear_param_store()
        case = regression(half)
        pyro.set_rng_seed(0)
        elbo = flow(half, 2, 0.2, path="annealed", surrogate=20)
        svi = kind(case.model, case.guide, pyro.optim.Adam({"lr": 0.03}), loss=elbo)
        losses.append([float(svi.step(20)) for _ in range(4)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)

"""TraceMMD_ELBO under the guides that people write, and automatic ones; and training with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests import reference
from tests.elbo_suite import assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_numpyro, slow_in_numpyro
from tests.objectives.programs import covariate_prior
from tests.objectives.statistics import averages_to
from tests.shared_programs import PARAMS, X, vae


def neutral(half: Half, **settings: Any) -> Any:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        return half.library.TraceMMD_ELBO(alpha=0.0, lambd=1.0, **settings)


def automatic(half: Half, kind: str, **settings: Any) -> Case:
    case = vae(half)
    return case._replace(guide=half.auto(kind, case.model, *case.args, **settings))


@slow_in_numpyro
def test_a_point_mass_guide_without_kl(half: Half) -> None:
    """The deterministic encoder of a WAE: α=1 removes the KL."""
    x = np.random.default_rng(1).normal(size=(30, 3))

    def guide(x: Any) -> None:
        z = x @ half.param("encoder", np.full((3, 2), 2.0))
        with half.plate("data", 30):
            half.sample("z", half.dist.Delta(z, event_dim=1))

    case = vae(half, x=x)._replace(guide=guide)
    objective = half.library.TraceMMD_ELBO(1.0, 1000.0)
    params = half.trained(objective, case, steps=150, lr=3e-2).params
    assert (x @ params["encoder"]).var(0).mean() == pytest.approx(1.0, abs=0.45)


@slow_in_numpyro
def test_auto_normal(half: Half) -> None:
    # Where all data have one posterior, few data have the discrepancy of infinitely many.
    start = half.init_to({"z": np.full((12, 2), 0.7)})
    case = automatic(half, "AutoNormal", init_loc_fn=start)
    elbo = half.library.TraceMMD_ELBO
    exact = half.penalty(elbo(0.0, 2.0, estimator="closed_form"), case)
    sampled = elbo(0.0, 2.0, prior_draws=2, num_particles=2, vectorize_particles=True)
    assert averages_to(half.penalties(sampled, case, count=100), exact)


@in_both("sites", [None, "z"], quick=[])
def test_auto_normal_kl_is_reweighted_whole(half: Half, sites: str | None) -> None:
    log: list[Any] = []
    case = vae(half)
    start = half.init_to({"z": np.zeros((12, 2))})
    guide = half.auto("AutoNormal", case.model, *case.args, init_scale=0.7, init_loc_fn=start)

    def keep(rows: Any) -> Any:
        log.append(rows.values)
        return 0.0 * rows.values.sum()

    base = half.infer.Trace_ELBO if half.compiles else lambda: None
    settings = {"sites": sites, "regularizer": keep}
    elbos = [
        half.library.TraceMMD_ELBO(w, 1 - w + 1e-12, base=base(), **settings)
        for w in (0.0, 0.5, 1.0)
    ]
    case = case._replace(guide=guide)
    none, part, whole = half.losses(elbos, case, count=1)[:, 0]
    ((z,),) = half.seen(log, elbos[0], case)
    kl = (norm.logpdf(z, 0.0, 0.7) - norm.logpdf(z, PARAMS["prior_loc"])).sum()
    assert none - whole == pytest.approx(kl, rel=1e-6)
    assert none - part == pytest.approx(0.5 * kl, rel=1e-6)


@in_both("kind", ["AutoDelta", "AutoMultivariateNormal"], quick=[])
def test_latents_of_any_autoguide_are_penalised(half: Half, kind: str) -> None:
    objective = half.library.TraceMMD_ELBO(0.0, 10.0, estimator="biased")
    assert half.penalties(objective, automatic(half, kind), count=2).min() > 0


@slow_in_numpyro
def test_trains_a_point_mass(half: Half) -> None:
    objective = half.library.TraceMMD_ELBO(1.0, 10.0)
    assert np.isfinite(half.trained(objective, automatic(half, "AutoDelta"), steps=3).losses).all()


@slow_in_numpyro
def test_a_denoising_model(half: Half) -> None:
    """Its data by name, as a keyword."""

    def model(x_in: Any, x_out: Any) -> None:
        with half.plate("data", 40):
            z = half.sample("z", half.dist.Normal(0 * x_in, 1.0).to_event(1))
            half.sample("x", half.dist.Normal(z, 1.0).to_event(1), obs=x_out)

    def guide(x_in: Any, x_out: Any) -> None:
        weight = half.param("weight", 0.1)
        with half.plate("data", 40):
            half.sample("z", half.dist.Normal(weight * x_in, 0.5).to_event(1))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    noisy, clean = (half.xp.asarray(a) for a in (x + 0.3 * rng.normal(size=x.shape), x))
    case = Case(model, guide, (noisy,), {"x_out": clean})
    losses = half.trained(half.library.TraceMMD_ELBO(0.0, 10.0), case, steps=60).losses
    assert losses[-10:].sum() < losses[:10].sum()


@slow_in_numpyro
def test_default_base_samples_the_kl_where_the_order_differs(half: Half) -> None:
    x = half.xp.asarray(np.arange(4.0))

    def model() -> None:
        a = half.sample("a", half.dist.Normal(0 * x[0], 1.0))
        with half.plate("data", 4):
            b = half.sample("b", half.dist.Normal(a + 0 * x, 1.0))
            half.sample("x", half.dist.Normal(b, 1.0), obs=x)

    def guide() -> None:
        with half.plate("data", 4):
            b = half.sample("b", half.dist.Normal(half.param("m", 0.3) + 0 * x, 1.0))
        half.sample("a", half.dist.Normal(b.mean(), 1.0))

    stock = half.infer.Trace_ELBO(num_particles=2, vectorize_particles=False)
    ours = neutral(half, num_particles=2, vectorize_particles=False)
    steps = half.steps([ours, stock], Case(model, guide))
    assert_same_step(*steps, own_parameters=set())


@in_numpyro
def test_reproduces_the_stock_elbo_under_a_guide_with_latents_of_its_own(half: Half) -> None:
    def guide(x: Any) -> None:
        with half.plate("data", 12):
            u = half.sample("u", half.dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            half.sample("z", half.dist.Normal(half.param("weight", 0.4) * u, 1.0))

    case = covariate_prior(half)._replace(guide=guide)
    steps = half.steps([neutral(half), half.infer.TraceMeanField_ELBO()], case)
    assert_same_step(*steps, own_parameters=set())


@in_numpyro
@pytest.mark.parametrize(
    "base", ["TraceGraph_ELBO", pytest.param("RenyiELBO", marks=pytest.mark.slow)]
)
def test_reproduces_a_base_that_has_one_particle(half: Half, base: str) -> None:
    ours, stock = (getattr(half.infer, base)(num_particles=1) for _ in range(2))
    steps = half.steps([neutral(half, base=ours), stock], vae(half))
    assert_same_step(*steps, own_parameters=set())


@in_numpyro
def test_a_guide_without_plates(half: Half) -> None:
    case = covariate_prior(half)

    def bare(x: Any) -> None:
        half.sample("z", half.dist.Normal(half.param("weight", 1.0) * x[:, 0], 1.0))

    settings = {"estimator": "closed_form", "base": half.infer.Trace_ELBO()}
    objective = half.library.TraceMMD_ELBO(0.0, 2.0, **settings)
    expected, value = (half.penalty(objective, c) for c in (case, case._replace(guide=bare)))
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@in_numpyro
def test_discrete_latents_are_left_to_a_base_that_knows_them(half: Half) -> None:
    def model(x: Any) -> None:
        with half.plate("data", 12):
            y = half.sample("y", half.dist.Bernoulli(0.5))
            z = half.sample("z", half.dist.Normal(2.0 * y, 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Any) -> None:
        with half.plate("data", 12):
            half.sample("y", half.dist.Bernoulli(half.param("p", 0.4)))
            half.sample("z", half.dist.Normal(half.param("loc", 0.0), 1.0))

    objective = half.library.TraceMMD_ELBO(lambd=3.0, base=half.infer.TraceGraph_ELBO())
    case = Case(model, guide, (half.xp.asarray(X),))
    losses, params = half.trained(objective, case, steps=200)
    assert losses[-50:].mean() < losses[:20].mean()
    assert not math.isclose(params["p"], 0.4)


@slow_in_numpyro
def test_the_penalty_moves_the_aggregated_posterior_to_the_prior(half: Half) -> None:
    x = 4 + np.random.default_rng(1).normal(size=(20, 3))

    def model(x: Any) -> None:
        decoder = half.param("decoder", PARAMS["decoder"])
        with half.plate("data", 20):
            z = half.sample("z", half.dist.Normal(half.xp.zeros((20, 2)), 1.0).to_event(1))
            loc = half.xp.tanh(z) @ decoder
            half.sample("x", half.dist.Normal(loc, 0.7).to_event(1), obs=x)

    case = vae(half, x=x)._replace(model=model)

    def distance(objective: Any) -> float:
        params = half.trained(objective, case, steps=100, lr=5e-2).params
        q, p = (x @ params["encoder"], params["scale"] + 0 * x[:, :2]), np.zeros((20, 2))
        return reference.mmd_squared_normal(*q, p, p + 1, [math.sqrt(2)], batch_size=20)

    stock = half.infer.TraceMeanField_ELBO()
    assert distance(half.library.TraceMMD_ELBO(0.0, 1000.0)) < 0.5 * distance(stock)

"""TraceMMD_ELBO: its value, its scale, its estimators and what it refuses."""

from __future__ import annotations

import functools
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
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoGuide, AutoMultivariateNormal
from numpyro.infer.elbo import ELBO, TraceEnum_ELBO

from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.kernels import IMQ, RBF
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

Params = dict[str, Any]


pytestmark = pytest.mark.usefixtures("quick_double_precision")


def initial(case: Programs) -> Params:
    """The parameters that model and guide start from."""
    if isinstance(case.guide, AutoGuide):
        handlers.seed(case.guide, 0)(*case.args)  # It keeps what it finds out when first called.

    def start() -> Params:
        guide = handlers.trace(handlers.seed(case.guide, 0)).get_trace(*case.args)
        model = handlers.replay(handlers.seed(case.model, 0), guide)
        sites = {**handlers.trace(model).get_trace(*case.args), **guide}
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    return jax.tree.map(lambda value: jnp.asarray(value, float), jax.jit(start)())


def seeded(*objectives: ELBO, case: Programs, seed: int = 3) -> list[tuple[float, Params]]:
    """Loss and gradients of one step, for each of some objectives."""

    @jax.jit
    def steps(params: Params) -> list[tuple[Array, Params]]:
        return [
            jax.value_and_grad(
                lambda params, objective=objective: objective.loss(
                    jax.random.key(seed), params, case.model, case.guide, *case.args
                )
            )(params)
            for objective in objectives
        ]

    return [(float(loss), grads) for loss, grads in steps(initial(case))]


def penalties(objective: TraceMMD_ELBO, case: Programs, count: int) -> np.ndarray:
    """The penalty alone, for several keys: the loss without what the base says of the draws."""
    keys = jax.random.split(jax.random.key(5), count)
    compiled = _compiled_penalty(objective, case.model, case.guide)
    return np.asarray(compiled(keys, initial(case), case.args))


@functools.cache
def _compiled_penalty(objective: TraceMMD_ELBO, model: Any, guide: Any) -> Callable[..., Array]:
    def penalty(key: Array, params: Params, args: tuple[Any, ...]) -> Array:
        run = key, params, model, guide, *args
        return objective.loss(*run) - objective.base.loss(*run)

    return jax.jit(jax.vmap(penalty, in_axes=(0, None, None)))


def penalty(objective: TraceMMD_ELBO, case: Programs) -> float:
    return float(penalties(objective, case, 1)[0])


def averages_to(samples: np.ndarray, expected: float) -> bool:
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    return abs(float(samples.mean()) - expected) < 4 * float(error)


def neutral(**settings: Any) -> TraceMMD_ELBO:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        return TraceMMD_ELBO(alpha=0.0, lambd=1.0, **settings)


def assert_same_step(ours: ELBO, stock: ELBO, case: Programs) -> None:
    (loss, grads), (expected, expected_grads) = seeded(ours, stock, case=case)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert grads.keys() == expected_grads.keys()
    assert grads
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-12, atol=1e-14)


BASES: dict[str, Callable[..., ELBO]] = {
    "trace": Trace_ELBO,
    "mean field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "renyi": lambda **kw: RenyiELBO(alpha=0.3, num_particles=kw.get("num_particles", 2)),
}
PARTICLES: dict[str, dict[str, Any]] = {
    "one": {},
    "vectorised": {"num_particles": 3},
    "mapped": {"num_particles": 3, "vectorize_particles": False},
}


class TestZeroWeight:
    def test_reproduces_the_stock_elbo_under_a_guide_with_latents_of_its_own(self) -> None:
        assert_same_step(neutral(), TraceMeanField_ELBO(), programs.auxiliary())

    @pytest.mark.parametrize("base", BASES.values(), ids=BASES)
    def test_reproduces_any_base(self, base: Callable[..., ELBO]) -> None:
        ours, stock = (base(**PARTICLES["vectorised"]) for _ in range(2))
        assert_same_step(neutral(base=ours), stock, programs.vae(num=20, batch=7))

    @pytest.mark.parametrize("base", [TraceGraph_ELBO, RenyiELBO])
    def test_reproduces_a_base_that_has_one_particle(self, base: Callable[..., ELBO]) -> None:
        ours, stock = (base(num_particles=1) for _ in range(2))
        assert_same_step(neutral(base=ours), stock, programs.vae())

    def test_default_base_samples_the_kl_where_the_order_differs(self) -> None:
        def model(x: Array) -> None:
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with numpyro.plate("data", 4):
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

        def guide(x: Array) -> None:
            with numpyro.plate("data", 4):
                b = numpyro.sample("b", dist.Normal(numpyro.param("m", 0.3), 1.0))
            numpyro.sample("a", dist.Normal(b.mean(), 1.0))

        case = Programs(model, guide, (np.arange(4.0),))
        assert_same_step(neutral(num_particles=2), Trace_ELBO(num_particles=2), case)


class TestValue:
    """Against the formula, written out for a case whose every draw is known."""

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
            return jax.jit(lambda: handlers.trace(seeded_program).get_trace(x)["z"]["value"])()

        _, guide_key, penalty_key = jax.random.split(jax.random.key(3), 3)
        z = draw(guide, guide_key)
        prior = draw(model, jax.random.split(jax.random.split(penalty_key, 1)[0], (1, 1))[0, 0])
        q = dist.Normal(x @ params["encoder"], params["scale"])
        likelihood = dist.Normal(np.tanh(z) @ params["decoder"], 0.7)
        kl = (q.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum()

        def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
            pairs = [math.exp(-float(((p - q) ** 2).sum()) / (2 * 1.3**2)) for p in a for q in b]
            return sum(pairs) / len(pairs)

        mmd = mean_kernel(z, z) + mean_kernel(prior, prior) - 2 * mean_kernel(z, prior)
        for alpha, (loss, _) in zip(alphas, seeded(*objectives, case=case), strict=True):
            expected = -likelihood.log_prob(x).sum() + (1 - alpha) * kl + 12 * (alpha + 6) * mmd
            assert loss == pytest.approx(float(expected), rel=1e-10)

    def test_subsampled_kl_is_weighted_at_full_scale(self) -> None:
        case = programs.vae(num=20, batch=5)
        params = initial(case)
        objectives = [TraceMMD_ELBO(alpha, 1.0 - alpha + 1e-9) for alpha in (0.0, 0.5)]
        (zero, _), (one, _) = seeded(*objectives, case=case)
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
    def test_expected_penalty_ignores_the_batch_size(self) -> None:
        means, errors = [], []
        objective = TraceMMD_ELBO(0.0, 2.0, num_particles=2)
        for batch, repeats in ((16, 200), (128, 30)):
            values = penalties(objective, programs.vae(num=500, batch=batch), repeats)
            means.append(float(values.mean()))
            errors.append(float(values.std(ddof=1)) / math.sqrt(repeats))
        assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
        assert min(means) > 8 * max(errors), "too little signal to tell the batch sizes apart"

    def test_expected_penalty_doubles_with_the_data(self) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        model, guide, (x,) = programs.vae(num=400, batch=80)
        single, double = (
            penalties(objective, Programs(model, guide, (d,)), 30)
            for d in (x, np.concatenate([x, x]))
        )
        error = math.hypot(2 * float(single.std()), float(double.std())) / math.sqrt(30)
        assert abs(2 * float(single.mean()) - float(double.mean())) < 4 * error
        assert float(double.mean()) > 8 * error

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


def _bernoulli() -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            y = numpyro.sample("y", dist.Bernoulli(0.5))
            z = numpyro.sample("z", dist.Normal(y, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(numpyro.param("p", 0.4)))
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def _gamma() -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.LogNormal(numpyro.param("m", 0.0), 1.0))

    return Programs(model, guide, (programs.data(),))


def _outside_plates() -> Programs:
    model, _, args = programs.vae()

    def guide(x: Array) -> None:
        loc = numpyro.param("m", jnp.zeros((len(x), 2)))
        numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Programs(model, guide, args)


class _SelfVectorised(Trace_ELBO):
    def loss_with_mutable_state(
        self, rng_key: Array, param_map: Params, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        losses = jax.vmap(
            lambda key: Trace_ELBO().loss(key, param_map, *args, **kwargs),
        )(jax.random.split(rng_key))
        return {"loss": losses.mean(), "mutable_state": None}


REFUSED_SETTINGS = {
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        r"particle settings in base; got TraceMMD_ELBO\(base=..., num_particles=3.*Trace_ELBO\(",
    ),
    "enumerating base": ({"base": TraceEnum_ELBO()}, "draws every latent; got TraceEnum_ELBO"),
    "multi-sample base": (
        {"base": Trace_ELBO(multi_sample_guide=True)},
        r"multi_sample_guide=False; got Trace_ELBO\(multi_sample_guide=True\)",
    ),
    "loss by site": (
        {"base": TraceMeanField_ELBO(sum_sites=False)},
        r"sum_sites=True; got TraceMeanField_ELBO\(sum_sites=False\)",
    ),
}

REFUSED_PROGRAMS: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "not reparameterised": (
        _bernoulli(),
        {"sites": ["y", "z"]},
        r"'y', which is not reparameterised \(Bernoulli.*\): leave it out of sites",
    ),
    "closed form": (
        _gamma(),
        {"estimator": "closed_form"},
        "diagonal normal at site 'z'; the guide has LogNormal.*use estimator='unbiased'",
    ),
    "guide outside plates": (
        _outside_plates(),
        {"alpha": 0.5},
        r"KL of 'z' cannot be weighted by 0.5: the guide draws it outside its plates \['data'\]",
    ),
    "vectorised base": (
        programs.vae(),
        {"base": _SelfVectorised()},
        "got _SelfVectorised, which runs model and guide inside a transformation of its own",
    ),
}


class TestErrors:
    @pytest.mark.parametrize(("settings", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
    def test_settings(self, settings: dict, match: str) -> None:
        with pytest.raises((ValueError, NotImplementedError), match=match):
            TraceMMD_ELBO(**settings)

    @pytest.mark.parametrize(
        ("case", "settings", "match"), REFUSED_PROGRAMS.values(), ids=REFUSED_PROGRAMS
    )
    def test_programs(self, case: Programs, settings: dict, match: str) -> None:
        objective = TraceMMD_ELBO(**settings)
        with pytest.raises((ValueError, NotImplementedError), match=match):
            evaluate_shapes(objective, case)

    def test_one_density_for_several_latents_cannot_be_reweighted(self) -> None:
        model, _, args = programs.two_latents()
        case = Programs(model, AutoMultivariateNormal(model), args)
        evaluate_shapes(TraceMMD_ELBO(0.0), case)
        with pytest.raises(
            NotImplementedError, match=r"KL of 'z1' cannot be weighted by 0.5: .*'_auto_latent'"
        ):
            evaluate_shapes(TraceMMD_ELBO(0.5), case)


def evaluate_shapes(objective: ELBO, case: Programs) -> None:
    """One evaluation by shapes alone, from whatever parameters the programs start with."""
    jax.eval_shape(
        lambda key: objective.loss(key, {}, case.model, case.guide, *case.args), jax.random.key(0)
    )

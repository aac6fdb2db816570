"""TraceInfoMax_ELBO: its value, its two gradients, its scale and what it refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO

from numpyro_backend.critics import ConcatCritic, SeparableCritic
from numpyro_backend.mutual_information import BOUNDS, MutualInformationEstimate, nwj, smile
from numpyro_backend.rows import Rows
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests import reference_mi
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.test_trace_mmd_elbo import (
    BASES,
    PARTICLES,
    Params,
    averages_to,
    evaluate_shapes,
    initial,
    penalties,
    penalty,
    seeded,
)

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]

CRITIC = "critic$params"
SITES = {"sites": ["z"]}
CASES = {
    "plain": programs.vae(),
    "subsampled": programs.vae(num=20, batch=7),
    "masked": programs.masked_vae(),
    "ragged": programs.sequences(),
    "nested": programs.nested(),
    "hierarchical": programs.hierarchical(),
}


@dataclass(frozen=True)
class Recording:
    """A critic that keeps what it was shown."""

    critic: Any
    calls: list[tuple[Array, Array]] = field(default_factory=list)

    def init(self, rng_key: Array) -> Any:
        return self.critic.init(rng_key)

    def bind(self, params: Any) -> Callable[[Array, Array], Array]:
        def score(x: Array, z: Array) -> Array:
            self.calls.append((x, z))
            return self.critic.apply(params, x, z)

        return score


def concat(x_dim: int = 3, z_dim: int = 2, *, width: int = 8) -> ConcatCritic:
    return ConcatCritic(x_dim, z_dim, hidden=(width,), activation=jnp.tanh)


def wrapped(objective: Any, case: Programs) -> Programs:
    return Programs(objective.wrap_model(case.model), case.guide, case.args)


class Seen(NamedTuple):
    """One step of an objective, and what its critic and its regulariser saw in it."""

    loss: Array
    grads: Params
    calls: list[tuple[Array, Array]]
    rows: Rows


def observe(
    critic: Any, alpha: float, case: Programs, *, seed: int = 3, **settings: Any
) -> tuple[Seen, Params]:
    recording, kept = Recording(critic), list[Rows]()

    def keep(rows: Rows) -> Array:
        kept.append(rows)
        return jnp.zeros((), rows.values.dtype)

    objective = TraceInfoMax_ELBO(recording, alpha, regularizer=keep, **settings)
    params = initial(wrapped(objective, case))

    @jax.jit
    def step(params: Params) -> Any:
        def loss(params: Params) -> tuple[Array, tuple[list[tuple[Array, Array]], Rows]]:
            recording.calls.clear()
            value = objective.loss(jax.random.key(seed), params, case.model, case.guide, *case.args)
            is_shifted = settings.get("negatives", "shift") == "shift"
            return value, (list(recording.calls) if is_shifted else [], kept[-1])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (calls, rows)), grads = step(params)
    return Seen(loss, grads, calls, rows), params


def all_scores(critic: Any, params: Params, x: Array, z: Array) -> np.ndarray:
    """The critic's score of every pair, one row of either at a time."""
    every = jax.vmap(jax.vmap(critic.bind(params[CRITIC]), (None, 0)), (0, None))
    return np.asarray(jax.jit(every)(x[:, None], z[:, None])[..., 0])


class TestZeroWeight:
    def check(self, ours: Any, stock: ELBO, case: Programs) -> None:
        case = wrapped(ours, case)
        (loss, grads), (expected, expected_grads) = seeded(ours, stock, case=case)
        assert loss == pytest.approx(expected, rel=1e-12)
        critic = jax.tree.leaves(grads.pop(CRITIC))
        del expected_grads[CRITIC]
        assert grads.keys() == expected_grads.keys()
        assert grads
        for name, grad in grads.items():
            np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-12, atol=1e-14)
        assert len(critic) == 4
        assert all(jnp.abs(grad).max() > 0 for grad in critic)

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_reproduces_the_stock_elbo(self, case: Programs) -> None:
        critic = concat(z_dim=1 if case is CASES["hierarchical"] else 2)
        self.check(TraceInfoMax_ELBO(critic, 0.0, **SITES), TraceMeanField_ELBO(), case)

    @pytest.mark.parametrize("base", BASES.values(), ids=BASES)
    def test_reproduces_any_base(self, base: Callable[..., ELBO]) -> None:
        ours, stock = (base(**PARTICLES["vectorised"]) for _ in range(2))
        self.check(TraceInfoMax_ELBO(concat(), 0.0, base=ours), stock, CASES["masked"])

    def test_reproduces_a_base_that_maps_over_particles(self) -> None:
        stock = TraceMeanField_ELBO(**PARTICLES["mapped"])
        ours = TraceInfoMax_ELBO(concat(), 0.0, **PARTICLES["mapped"])
        self.check(ours, stock, CASES["subsampled"])

    def test_reproduces_a_base_that_declares_parameters_too(self) -> None:
        ours, stock = (TraceHamiltonian_ELBO(num_steps=1) for _ in range(2))
        self.check(TraceInfoMax_ELBO(concat(), 0.0, base=ours), stock, CASES["plain"])

    def test_scores_beyond_every_bound_do_not_reach_the_guide(self) -> None:
        class Infinite:
            def init(self, rng_key: Array) -> dict[str, Array]:
                return {}

            def bind(self, params: Any) -> Callable[[Array, Array], Array]:
                return lambda x, z: z.sum(1) * math.inf

        ours = TraceInfoMax_ELBO(Infinite(), 0.0, base=Trace_ELBO())
        (loss, grads), (_, expected) = seeded(
            ours, Trace_ELBO(), case=wrapped(ours, CASES["plain"])
        )
        assert math.isnan(loss)
        for name, grad in expected.items():
            jax.tree.map(np.testing.assert_allclose, grads[name], grad)


class TestValue:
    def test_equals_the_formula(self) -> None:
        case = programs.vae()
        _, guide, (x,) = case
        critic = concat()
        weights = (0.0, 1.0), (0.4, 0.7), (2.0, 0.0)
        objectives = [
            TraceInfoMax_ELBO(critic, alpha, beta, base=Trace_ELBO()) for alpha, beta in weights
        ]
        params = initial(wrapped(objectives[0], case))
        _, guide_key, penalty_key = jax.random.split(jax.random.key(3), 3)
        program = handlers.seed(handlers.substitute(guide, data=params), guide_key)
        z = jax.jit(lambda: handlers.trace(program).get_trace(x)["z"]["value"])()
        (group_key,) = jax.random.split(penalty_key, 1)
        offset = int(jax.random.randint(group_key, (), 1, 12))
        q = dist.Normal(x @ params["encoder"], params["scale"])
        likelihood = dist.Normal(np.tanh(z) @ params["decoder"], 0.7)
        kl = (q.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum()
        scores = all_scores(critic, params, x, z)
        marginal = [math.exp(scores[i, (i + offset) % 12] - 1) for i in range(12)]
        information = np.diag(scores).mean() - sum(marginal) / 12
        wrapped_case = wrapped(objectives[0], case)
        losses = [loss for loss, _ in seeded(*objectives, case=wrapped_case)]
        for (alpha, beta), loss in zip(weights, losses, strict=True):
            expected = -likelihood.log_prob(x).sum() + beta * kl - 12 * alpha * information
            assert loss == pytest.approx(float(expected), rel=1e-10)

    @pytest.mark.parametrize("critic", [concat(), SeparableCritic(3, 2, (8,))])
    def test_all_negatives_equal_a_loop(self, critic: Any) -> None:
        case = CASES["subsampled"]
        objectives = [
            TraceInfoMax_ELBO(critic, 1.5, bound=bound, negatives="all", base=Trace_ELBO())
            for bound in BOUNDS
        ]
        seen, params = observe(critic, 1.5, case, negatives="all", base=Trace_ELBO())
        (base, _), *steps = seeded(Trace_ELBO(), *objectives, case=wrapped(objectives[0], case))
        scores = all_scores(critic, params, seen.rows.data["x"], seen.rows.values)
        marginal = [[scores[i, j] for j in range(7) if j != i] for i in range(7)]
        for bound, (loss, _) in zip(BOUNDS, steps, strict=True):
            formula = getattr(reference_mi, bound)
            estimate, _ = formula(np.diag(scores), marginal, [1.0] * 7, [[1.0] * 6] * 7)
            assert loss - base == pytest.approx(-20 * 1.5 * estimate, rel=1e-9), bound

    @pytest.mark.parametrize("particles", [PARTICLES["vectorised"], PARTICLES["mapped"]])
    def test_masked_rows_count_neither_as_data_nor_as_negatives(self, particles: dict) -> None:
        """As the loops over the rows that are not masked, in each particle on its own."""
        critic, case, base = concat(), CASES["masked"], Trace_ELBO(**particles)
        bounds = "nwj", "infonce"
        objectives = [
            TraceInfoMax_ELBO(critic, 1.5, bound=bound, negatives="all", base=base)
            for bound in bounds
        ]
        seen, params = observe(critic, 1.5, case, negatives="all", base=base)
        (expected, _), *steps = seeded(base, *objectives, case=wrapped(objectives[0], case))
        scores = all_scores(critic, params, seen.rows.data["x"], seen.rows.values)
        kept = [r for r in range(36) if r % 12 % 3]
        joint = [scores[r, r] for r in kept]
        marginal = [[scores[r, s] for s in kept if s != r and s // 12 == r // 12] for r in kept]
        ones = [1.0] * len(kept)
        for bound, (loss, _) in zip(bounds, steps, strict=True):
            formula = getattr(reference_mi, bound)
            estimate, _ = formula(joint, marginal, ones, [[1.0] * 7] * len(kept))
            assert loss - expected == pytest.approx(-12 * 1.5 * estimate, rel=1e-9), bound


class TestGradients:
    @pytest.mark.parametrize(
        ("case", "particles", "settings"),
        [
            ("plain", "one", {}),
            ("subsampled", "vectorised", {"negatives": "all"}),
            ("masked", "mapped", {"bound": "dv"}),
            ("masked", "one", {"bound": "infonce", "negatives": "all"}),
        ],
        ids=["nwj", "nwj all", "dv", "infonce all"],
    )
    def test_equal_finite_differences(self, case: str, particles: str, settings: dict) -> None:
        """Those of the whole loss for model and guide; over N alpha for the critic."""
        program = CASES[case]
        objective = TraceInfoMax_ELBO(
            concat(), 0.6, 0.8, base=Trace_ELBO(**PARTICLES[particles]), **settings
        )
        params = initial(wrapped(objective, program))
        rng = np.random.default_rng(0)
        directions = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

        def loss(params: Params) -> Array:
            run = jax.random.key(3), params, program.model, program.guide, *program.args
            return objective.loss(*run)

        def along(steps: Params) -> Array:
            moved = {
                name: jax.tree.map(lambda v, d, h=steps[name]: v + h * d, value, directions[name])
                for name, value in params.items()
            }
            return loss(moved)

        units = {name: 1e-5 * row for name, row in zip(params, np.eye(len(params)), strict=True)}
        both_ways = {name: np.concatenate([row, -row]) for name, row in units.items()}
        losses, grads = jax.jit(lambda: (jax.vmap(along)(both_ways), jax.grad(loss)(params)))()
        slopes = (losses[: len(params)] - losses[len(params) :]) / 2e-5
        for name, slope in zip(params, slopes, strict=True):
            products = jax.tree.map(lambda g, d: (g * d).sum(), grads[name], directions[name])
            factor = 0.6 * len(program.args[0]) if name == CRITIC else 1.0
            gradient = float(sum(jax.tree.leaves(products))) * factor
            assert gradient == pytest.approx(float(slope), rel=1e-5), name

    @pytest.mark.parametrize(("alpha", "num"), [(0.0, 12), (0.5, 600), (300.0, 12)])
    def test_the_critic_ascends_the_estimate_itself(self, alpha: float, num: int) -> None:
        critic = concat()
        seen, params = observe(critic, alpha, programs.vae(num=num, batch=12))
        (x, z), (same_x, other) = seen.calls
        np.testing.assert_array_equal(x, same_x)
        assert sum(bool((other == jnp.roll(z, s, 0)).all()) for s in range(1, 12)) == 1

        def descended(params: Any) -> Array:
            marginal = critic.apply(params, x, other)
            return jnp.exp(marginal - 1).mean() - critic.apply(params, x, z).mean()

        expected = jax.jit(jax.grad(descended))(params[CRITIC])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), seen.grads[CRITIC], expected)

    def test_the_guide_feels_the_surrogate_and_the_loss_the_estimate(self) -> None:
        def bound(joint: Array, marginal: Array, **weights: Any) -> MutualInformationEstimate:
            return MutualInformationEstimate(jnp.asarray(5.0), nwj(joint, marginal).surrogate)

        plain, ours = (TraceInfoMax_ELBO(concat(), 0.5, bound=b) for b in ("nwj", bound))
        stock = TraceMeanField_ELBO()
        steps = seeded(stock, plain, ours, case=wrapped(plain, CASES["plain"]))
        (base, _), (_, expected), (loss, grads) = steps
        assert loss - base == pytest.approx(-12 * 0.5 * 5.0)
        jax.tree.map(np.testing.assert_allclose, grads, expected)

    def test_huge_scores_in_single_precision_stay_finite(self) -> None:
        class Huge:
            def init(self, rng_key: Array) -> Array:
                return jnp.asarray(1e4)

            def bind(self, params: Any) -> Callable[[Array, Array], Array]:
                return lambda x, z: params * jnp.sign(x[:, 0]) * (1 + 1e-3 * jnp.tanh(z[:, 0]))

        model, guide, (x,) = programs.vae(num=60_000, batch=100)
        case = Programs(model, guide, (x.astype("float32"),))
        with jax.enable_x64(False):
            objectives = [TraceInfoMax_ELBO(Huge(), bound=bound) for bound in BOUNDS]
            for loss, grads in seeded(*objectives, case=wrapped(objectives[0], case)):
                assert math.isfinite(loss)
                assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))
                assert {grad.dtype for grad in jax.tree.leaves(grads)} == {jnp.dtype("float32")}

    def test_single_precision_at_full_scale_keeps_the_codes_exactly(self) -> None:
        model, guide, (x,) = programs.vae(num=60_000, batch=100)
        with jax.enable_x64(False):
            case = Programs(model, guide, (x.astype("float32"),))
            seen, _ = observe(concat(), 10.0, case)
            assert seen.calls[0][1].dtype == jnp.float32
            np.testing.assert_array_equal(seen.calls[0][1], seen.rows.values)

    @pytest.mark.parametrize("negatives", ["shift", "all"])
    @pytest.mark.parametrize("double", [False, True])
    def test_keeps_the_dtype_without_rank_promotion(self, double: bool, negatives: str) -> None:
        def standard() -> dist.Distribution:
            return dist.Normal(jnp.zeros((6, 2)), jnp.ones((6, 2))).to_event(1)

        def model(x: Array) -> None:
            with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
                z = numpyro.sample("z", standard())
                numpyro.sample("x", dist.Normal(z, jnp.ones((6, 2))).to_event(1), obs=x)

        def guide(x: Array) -> None:
            loc = numpyro.param("loc", jnp.zeros((6, 2)))
            with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
                numpyro.sample("z", dist.Normal(loc + x, jnp.ones((6, 2))).to_event(1))

        with jax.enable_x64(double), jax.numpy_rank_promotion("raise"):
            dtype = jnp.dtype("float64" if double else "float32")
            args = jnp.arange(12, dtype=dtype).reshape(6, 2)
            critic = concat(2)
            objective = TraceInfoMax_ELBO(critic, negatives=negatives, num_particles=2)
            params = {
                "loc": jnp.zeros((6, 2), dtype),
                CRITIC: jax.eval_shape(critic.init, jax.random.key(0)),
            }
            shapes = jax.eval_shape(
                lambda key, params: jax.value_and_grad(
                    lambda params: objective.loss(key, params, model, guide, args)
                )(params),
                jax.random.key(0),
                params,
            )
            assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {dtype}


class TestScale:
    @pytest.mark.parametrize("negatives", ["shift", "all"])
    def test_the_expected_penalty_ignores_the_batch_size(self, negatives: str) -> None:
        means, errors = [], []
        for batch, repeats in ((32, 150), (256, 20)):
            objective = TraceInfoMax_ELBO(concat(), negatives=negatives)
            case = wrapped(objective, programs.vae(num=1000, batch=batch))
            values = penalties(objective, case, repeats)
            means.append(float(values.mean()))
            errors.append(float(values.std(ddof=1)) / math.sqrt(repeats))
        assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
        assert abs(means[1]) > 8 * max(errors), "too little signal to tell the batch sizes apart"

    def test_the_expected_penalty_ignores_the_particles(self) -> None:
        one = TraceInfoMax_ELBO(concat())
        case = wrapped(one, programs.vae(num=30))
        alone = penalties(one, case, 200)
        for vectorize in (True, False):
            many = TraceInfoMax_ELBO(concat(), num_particles=8, vectorize_particles=vectorize)
            values = penalties(many, case, 60)
            assert averages_to(alone, float(values.mean()))
            assert abs(float(values.mean())) > 8 * float(values.std()) / math.sqrt(60)

    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        objective = TraceInfoMax_ELBO(concat())
        case = CASES["plain"]
        scaled = Programs(
            handlers.scale(case.model, scale=0.1), handlers.scale(case.guide, scale=0.1), case.args
        )
        values = [penalty(objective, wrapped(objective, program)) for program in (case, scaled)]
        assert values[0] == pytest.approx(values[1])
        assert values[0] != 0


class TestMethods:
    def test_the_penalty_reaches_the_gradient_over_any_base(self) -> None:
        """At β=0 the bases agree: what is left is the likelihood and the penalty."""
        objectives = [
            TraceInfoMax_ELBO(concat(), 0.3, 0.0, base=base)
            for base in (Trace_ELBO(), TraceGraph_ELBO(), TraceMeanField_ELBO())
        ]
        case = wrapped(objectives[0], CASES["plain"])
        (expected, expected_grads), *others = seeded(*objectives, case=case)
        for loss, grads in others:
            assert loss == pytest.approx(expected, rel=1e-9)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), grads, expected_grads)

    def test_few_rows_warn_once(self) -> None:
        few, many = programs.vae(num=63), programs.vae(num=64)
        objective = TraceInfoMax_ELBO(concat())
        with pytest.warns(UserWarning, match="from 63 rows, which is poor below 64"):
            evaluate(objective, few)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate(objective, few)
            evaluate(TraceInfoMax_ELBO(concat()), many)


def evaluate(objective: Any, case: Programs, params: Params | None = None) -> None:
    """One evaluation by shapes alone, with the critic's parameters as it draws them."""

    def loss(key: Array) -> Array:
        drawn = {CRITIC: objective.critic.init(key)} if params is None else params
        return objective.loss(key, drawn, case.model, case.guide, *case.args)

    jax.eval_shape(loss, jax.random.key(0))


def _two_observed() -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            for name in ("left", "right"):
                numpyro.sample(name, dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    return Programs(model, programs.vae().guide, (programs.data(),))


def _unobserved() -> Programs:
    """The only observation is outside the plate; a factor and a deterministic are no data."""

    def model(x: Array) -> None:
        numpyro.sample("sum", dist.Normal(0.0, 1.0), obs=x.sum())
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.factor("factor", z.sum(-1))
            numpyro.deterministic("copy", z)

    return Programs(model, programs.vae().guide, (programs.data(),))


def _lone() -> Programs:
    def model() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(theta, 1.0), obs=0.5)

    def guide() -> None:
        numpyro.sample("theta", dist.Normal(numpyro.param("m", 0.0), 1.0))

    return Programs(model, guide, ())


@dataclass(frozen=True)
class Shaped:
    """A critic whose scores have a shape of their own."""

    index: Any

    def init(self, rng_key: Array) -> dict[str, Array]:
        return {}

    def bind(self, params: Any) -> Callable[[Array, Array], Array]:
        return lambda x, z: z.sum(1)[self.index]


REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "alpha": ({"alpha": -0.1}, ValueError, "alpha >= 0 and beta >= 0; got alpha=-0.1, beta=1.0"),
    "beta": ({"beta": -1.0}, ValueError, "got alpha=1.0, beta=-1.0"),
    "nan": ({"alpha": math.nan}, ValueError, "got alpha=nan"),
    "bound": ({"bound": "mine"}, ValueError, "bound to be one of 'nwj', 'dv'.*got 'mine'"),
    "negatives": ({"negatives": "roll"}, ValueError, r"one of \['shift', 'all'\]; got 'roll'"),
    "critic": ({"critic": nwj}, TypeError, "Expected critic to be a module of flax.linen"),
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        ValueError,
        "particle settings in base",
    ),
}

REFUSED_PROGRAMS: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "several stacks of plates": (
        programs.nested(),
        {},
        r"latents \[\['outer'\], \['z'\]\] are in different plates.*choose by sites",
    ),
    "outside plates": (
        _lone(),
        {"sites": ["theta"], "num_particles": 4},
        r"latents \['theta'\] are in no plate of several data.*choose by sites",
    ),
    "several observed": (
        _two_observed(),
        {},
        r"Expected one observed site in the plates of \['z'\]; got \['left', 'right'\]: pass data=",
    ),
    "unknown data": (
        programs.vae(),
        {"data": "y"},
        r"Expected the observed site 'y' in the plates of \['z'\]; got \['x'\]: pass data=",
    ),
    "latent as data": (programs.vae(), {"data": "z"}, r"the observed site 'z'.*got \['x'\]"),
    "none observed": (_unobserved(), {}, r"Expected one observed site .*; got \[\]: pass data="),
    "other plates": (programs.nested(), {"sites": "outer"}, r"plates of \['outer'\]; got \[\]"),
    "function of another shape": (
        programs.vae(num=20, batch=7),
        {"data": lambda x: x[:5]},
        r"Expected data\(\*args\) of shape \(7, \*event\), as the plates of \['z'\], or of their "
        r"full size; got \(5, 3\)",
    ),
    "function of a scalar": (programs.vae(), {"data": lambda x: x.sum()}, r"full size; got \(\)"),
    "batch of one": (programs.vae(num=20, batch=1), {}, "'z' has a single row: use a larger mini"),
    "column": (
        programs.vae(),
        {"critic": Shaped((slice(None), None))},
        r"Expected critic\(x, z\) of shape \(12,\); got \(12, 1\): squeeze its last dimension",
    ),
    "too few scores": (
        programs.vae(),
        {"critic": Shaped(slice(5))},
        r"shape \(12,\); got \(5,\): one score per row",
    ),
    "too few of all scores": (
        programs.vae(),
        {"critic": Shaped(slice(5)), "negatives": "all"},
        r"shape \(144,\); got \(5,\): one score per row",
    ),
    "regularizer": (
        programs.vae(),
        {"regularizer": lambda rows: rows.values},
        r"regularizer\(rows\) to be a scalar; got shape \(12, 2\) for the rows of \['z'\]",
    ),
}


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "error", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS
    )
    def test_settings(self, settings: dict, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            TraceInfoMax_ELBO(**{"critic": concat(), **settings})

    @pytest.mark.parametrize(
        ("case", "settings", "match"), REFUSED_PROGRAMS.values(), ids=REFUSED_PROGRAMS
    )
    def test_programs(self, case: Programs, settings: dict, match: str) -> None:
        objective = TraceInfoMax_ELBO(**{"critic": concat(), **settings})
        with pytest.raises(ValueError, match=match):
            evaluate(objective, case)

    def test_a_model_that_does_not_declare_the_critic(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"TraceInfoMax_ELBO: Expected the critic's parameters 'critic\$params'; got "
            r"\['loc'\]: use numpyro_backend.SVI, or pass elbo.wrap_model\(model\) for the model",
        ):
            evaluate(TraceInfoMax_ELBO(concat()), CASES["plain"], {"loc": jnp.zeros(())})
        with pytest.raises(ValueError, match=r"'mine\$params'; got \[\]"):
            evaluate_shapes(TraceInfoMax_ELBO(concat(), name="mine"), CASES["plain"])

    @pytest.mark.parametrize("settings", [{"data": "right"}, {"data": lambda x: x[:, 0]}])
    def test_naming_the_data_settles_which(self, settings: dict) -> None:
        case = _two_observed()
        seen, _ = observe(concat(1), 1.0, case, **settings)
        np.testing.assert_array_equal(seen.calls[0][0], case.args[0][:, 0])

    def test_an_earlier_critic_of_another_shape(self) -> None:
        params = {CRITIC: concat().init(jax.random.key(0))}
        with pytest.raises(
            ValueError,
            match=r"'critic\$params' with shape \(9,\) at \['first'\]\['bias'\]; got shape "
            r"\(8,\) of an earlier critic: initialise SVI anew, or pass another name=",
        ):
            evaluate(TraceInfoMax_ELBO(concat(width=9)), CASES["plain"], params)

    def test_a_bound_with_an_option(self) -> None:
        clipped, plain = (
            TraceInfoMax_ELBO(concat(), bound=bound) for bound in (partial(smile, clip=1e-3), "dv")
        )
        steps = seeded(clipped, plain, case=wrapped(plain, CASES["plain"]))
        assert steps[0][0] != pytest.approx(steps[1][0])

"""TraceInfoMax_ELBO on the programs people write: negatives, data, declared critics, training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.critics import ConcatCritic, score_all_pairs
from numpyro_backend.mutual_information import nwj
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.test_trace_infomax_elbo import (
    CRITIC,
    Recording,
    concat,
    observe,
    wrapped,
)
from tests.numpyro_backend.test_trace_mmd_elbo import (
    PARTICLES,
    Params,
    _compiled_penalty,
    initial,
    seeded,
)
from tests.numpyro_backend.test_trace_mmd_programs import _counting, _WithParameter

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def scattered(*, num: int = 12, batch: int | None = None) -> Programs:
    """z holds noise and a global latent, by which the particle of a code can be told."""
    x = np.broadcast_to(np.arange(float(num))[:, None], (num, 3))

    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", num, subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(theta, jnp.ones(2)).to_event(1))
            likelihood = dist.Normal(z.sum(-1, keepdims=True), jnp.ones(3)).to_event(1)
            numpyro.sample("x", likelihood, obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(numpyro.param("loc", 0.3), 1.0))
        with numpyro.plate("data", num, subsample_size=batch) as index:
            rows = jnp.asarray(x)[index, 0]
            loc = jnp.stack([rows, jnp.full_like(rows, theta)], -1)
            numpyro.sample("z", dist.Normal(loc, jnp.array([1.0, 1e-9])).to_event(1))

    return Programs(model, guide, (x,))


class Shown(NamedTuple):
    """What the critic saw of own codes and of others', a leading axis of keys."""

    x: np.ndarray
    own: np.ndarray
    same_x: np.ndarray
    other: np.ndarray


def shown(case: Programs, count: int, **settings: Any) -> Shown:
    recording = Recording(concat())
    objective = TraceInfoMax_ELBO(recording, **settings)

    def step(key: Array, params: Params) -> tuple[Array, ...]:
        recording.calls.clear()
        objective.loss(key, params, case.model, case.guide, *case.args)
        (x, own), (same_x, other) = recording.calls
        return x, own, same_x, other

    keys = jax.random.split(jax.random.key(1), count)
    params = initial(wrapped(objective, case))
    return Shown(*map(np.asarray, jax.jit(jax.vmap(step, (0, None)))(keys, params)))


class TestNegatives:
    @pytest.mark.parametrize(
        ("batch", "particles"),
        list(zip((None, 5, 5), PARTICLES.values(), strict=True)),
        ids=PARTICLES,
    )
    def test_are_codes_of_other_data_of_the_same_particle(
        self, batch: int | None, particles: dict
    ) -> None:
        draws = particles.get("num_particles", 1)
        for x, own, same_x, other in zip(
            *shown(scattered(batch=batch), 30, **particles), strict=True
        ):
            assert len(own) == (batch or 12) * draws
            np.testing.assert_array_equal(x, same_x)
            matches = (other[:, None] == own).all(-1)
            np.testing.assert_array_equal(matches.sum(1), 1)
            source = matches.argmax(1)
            assert (x[source, 0] != x[:, 0]).all(), "a negative is another datum's"
            np.testing.assert_allclose(own[source, 1], own[:, 1], rtol=0, atol=1e-7)
            assert (np.diff(np.sort(own[:, 1])) > 1e-7).sum() == draws - 1

    def test_every_other_datum_is_met_equally_often(self) -> None:
        offsets = np.zeros(12)
        for x, own, _, other in zip(*shown(scattered(), 300), strict=True):
            source = (other[0] == own).all(-1).argmax()
            offsets[int(x[source, 0] - x[0, 0]) % 12] += 1
        assert offsets[0] == 0
        chi_squared = ((offsets[1:] - 300 / 11) ** 2 / (300 / 11)).sum()
        assert chi_squared < 10 + 4 * math.sqrt(2 * 10)

    def test_particles_have_offsets_of_their_own(self) -> None:
        _, own, _, other = shown(scattered(), 30, num_particles=2)
        sources = (other[:, [0, 12], None] == own[:, None]).all(-1).argmax(-1)
        offsets = sources - np.array([0, 12])
        assert 15 < (offsets[:, 0] != offsets[:, 1]).sum() < 30

    @pytest.mark.parametrize("case", [programs.masked_vae(), programs.sequences()])
    @pytest.mark.parametrize("negatives", ["shift", "all"])
    def test_masked_data_may_be_anything(self, case: Programs, negatives: str) -> None:
        model, guide, (x,) = case
        objective = TraceInfoMax_ELBO(concat(), negatives=negatives, num_particles=2)
        start = wrapped(objective, case)
        compiled = _compiled_penalty(objective, model, guide)
        masked = np.zeros((*x.shape[:-1], 1))
        masked[(slice(None, None, 3),) if x.ndim == 2 else (4, slice(1, None))] = 1.0
        keys, params = jax.random.split(jax.random.key(5), 1), initial(start)
        near, far, moved = (
            float(compiled(keys, params, (data,))[0])
            for data in (x, x + 1e6 * masked, x + 1 - masked)
        )
        assert near == pytest.approx(far, rel=1e-12)
        assert near != pytest.approx(moved)

    def test_where_all_is_masked_nothing_can_be_told(self) -> None:
        model, guide, args = programs.vae()
        masked = (handlers.mask(program, mask=False) for program in (model, guide))
        objective = TraceInfoMax_ELBO(concat(), 3.0)
        ((loss, grads),) = seeded(objective, case=wrapped(objective, Programs(*masked, args)))
        assert loss == 0
        assert all(jnp.abs(grad).max() == 0 for grad in jax.tree.leaves(grads))


def denoising(*, num: int = 20, batch: int | None = None) -> Programs:
    """Takes x_in, of which the guide copies a part to z, and is to give x_out back."""

    def model(x_in: Array, x_out: Array) -> None:
        with numpyro.plate("data", num, subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=jnp.asarray(x_out)[index])

    def guide(x_in: Array, x_out: Array) -> None:
        with numpyro.plate("data", num, subsample_size=batch) as index:
            scale = numpyro.param("scale", 1e-9, constraint=constraints.positive)
            numpyro.sample("z", dist.Normal(jnp.asarray(x_in)[index, :2], scale).to_event(1))

    x = programs.data(num)
    return Programs(model, guide, (x, x.sum(-1)))


class TestData:
    @pytest.mark.parametrize(
        ("batch", "particles"),
        list(zip((None, 7, 7), PARTICLES.values(), strict=True)),
        ids=PARTICLES,
    )
    def test_a_function_of_the_arguments_goes_with_the_minibatch(
        self, batch: int | None, particles: dict
    ) -> None:
        case = denoising(batch=batch)
        seen, _ = observe(concat(), 1.0, case, data=lambda x_in, x_out: x_in, **particles)
        x, z = seen.calls[0]
        assert len(x) == (batch or 20) * particles.get("num_particles", 1)
        np.testing.assert_allclose(x[:, :2], z, rtol=0, atol=1e-6)

    def test_a_function_may_give_the_minibatch_itself(self) -> None:
        minibatch = np.arange(7)
        seen, _ = observe(
            concat(1), 1.0, denoising(batch=7), data=lambda *args: minibatch, num_particles=2
        )
        np.testing.assert_array_equal(seen.calls[0][0], np.tile(minibatch, 2))

    @pytest.mark.parametrize(
        ("source", "particles"),
        list(zip((lambda x: x, "x", lambda x: x), PARTICLES.values(), strict=True)),
        ids=PARTICLES,
    )
    def test_nested_plates_of_which_one_is_subsampled(self, source: Any, particles: dict) -> None:
        x = programs.data(24).reshape(4, 6, 3)

        def model(x: Array) -> None:
            groups = numpyro.plate("groups", 6, subsample_size=5, dim=-1)
            with groups as index, numpyro.plate("items", 4, dim=-2):
                z = numpyro.sample("z", dist.Normal(jnp.zeros((4, 5, 2)), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=jnp.asarray(x)[:, index, 2])

        def guide(x: Array) -> None:
            scale = numpyro.param("scale", 1e-9)
            groups = numpyro.plate("groups", 6, subsample_size=5, dim=-1)
            with groups as index, numpyro.plate("items", 4, dim=-2):
                loc = jnp.asarray(x)[:, index, :2]
                numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

        critic = concat(1 if source == "x" else 3)
        seen, _ = observe(critic, 1.0, Programs(model, guide, (x,)), data=source, **particles)
        rows, z = seen.calls[0]
        assert len(rows) == 20 * particles.get("num_particles", 1)
        found = np.abs(z[:, None] - x[..., :2].reshape(24, 2)).sum(-1).argmin(1)
        expected = x[..., 2].reshape(-1) if source == "x" else x.reshape(24, 3)
        np.testing.assert_array_equal(rows, expected[found])

    def test_images_keep_their_shape_and_may_be_integers(self) -> None:
        class Images:
            shape: tuple[int, ...] = ()

            def init(self, rng_key: Array) -> Array:
                return jnp.ones((64, 4))

            def apply(self, params: Array, values: Array) -> Array:
                self.shape = values.shape
                return values.reshape(-1, 64) @ params

        def model(x: Array) -> None:
            with numpyro.plate("data", 16):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                logits = jnp.broadcast_to(z.sum(-1)[:, None, None, None], x.shape)
                numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

        def guide(x: Array) -> None:
            with numpyro.plate("data", 16):
                loc = numpyro.param("weight", jnp.ones(2)) * x.mean((-3, -2, -1))[:, None]
                numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        encoder = Images()
        critic = ConcatCritic(x_dim=4, z_dim=2, hidden=(8,), x_encoder=encoder)
        x = np.random.default_rng(0).integers(0, 2, (16, 1, 8, 8))
        objective = TraceInfoMax_ELBO(critic, num_particles=3)
        case = wrapped(objective, Programs(model, guide, (x,)))
        ((_, grads),) = seeded(objective, case=case)
        assert jnp.abs(grads[CRITIC]["x_encoder"]).max() > 0
        assert encoder.shape == (48, 1, 8, 8)


class Linen(linen.Module):
    """A critic that learns the sizes of its inputs when it is initialised."""

    @linen.compact
    def __call__(self, x: Array, z: Array) -> Array:
        hidden = jnp.tanh(linen.Dense(8)(jnp.concatenate([x.reshape(len(x), -1), z], 1)))
        return linen.Dense(1)(hidden)[:, 0]


def declared(objective: Any, case: Programs) -> Params:
    """What SVI trains."""
    svi = numpyro_backend.SVI(case.model, case.guide, Adam(1e-2), loss=objective)
    return jax.jit(lambda key: svi.get_params(svi.init(key, *case.args)))(jax.random.key(0))


def _mixture_prior() -> Programs:
    """A prior that is not reparameterised, under a guide that is; y is neither."""

    def model(x: Array) -> None:
        parts = dist.Normal(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 1.0).to_event(1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(0.5))
            prior = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), parts)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True), 1.0).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(numpyro.param("p", 0.4)))
            loc = numpyro.param("loc", jnp.zeros(2))
            numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Programs(model, guide, (programs.data(),))


class TestDeclaredCritic:
    @pytest.mark.parametrize(
        ("case", "settings", "widths"),
        [
            (programs.vae(), {}, 3 + 2),
            (programs.vae(num=20, batch=7), {"data": lambda x: x[:, :1]}, 1 + 2),
            (programs.sequences(), {"num_particles": 2}, 3 + 2),
            (programs.hierarchical(), {}, 3 + 1),
            (programs.nested(), {"sites": "z"}, 3 + 2),
            (_mixture_prior(), {"base": TraceGraph_ELBO()}, 3 + 2),
        ],
        ids=["plain", "function", "ragged", "hierarchical", "nested", "mixture prior"],
    )
    def test_is_initialised_for_the_rows_of_the_program(
        self, case: Programs, settings: dict, widths: int
    ) -> None:
        objective = TraceInfoMax_ELBO(Linen(), **settings)
        params = declared(objective, case)
        assert params[CRITIC]["Dense_0"]["kernel"].shape == (widths, 8)
        loss = jax.eval_shape(
            lambda key: objective.loss(key, params, case.model, case.guide, *case.args),
            jax.random.key(0),
        )
        assert loss.shape == ()

    @pytest.mark.parametrize(
        ("case", "settings", "match"),
        [
            (programs.nested(), {}, r"\[\['outer'\], \['z'\]\] are in different plates"),
            (programs.vae(), {"sites": "zz"}, "sites names 'zz', which is no latent"),
            (programs.vae(), {"data": "y"}, "Expected the observed site 'y' in the plates"),
        ],
    )
    def test_is_refused_where_its_rows_are_not_known(
        self, case: Programs, settings: dict, match: str
    ) -> None:
        with pytest.raises(ValueError, match=match):
            declared(TraceInfoMax_ELBO(Linen(), **settings), case)

    def test_leaves_the_models_own_draws_as_they_are(self) -> None:
        def model(x: Array) -> None:
            numpyro.param("weight", lambda rng_key: jax.random.normal(rng_key))
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True), 1.0).to_event(1))

        guide = programs.vae().guide
        case = Programs(model, guide, (programs.data(),))
        ours, stock = (declared(o, case) for o in (TraceInfoMax_ELBO(concat()), Trace_ELBO()))
        assert ours.pop(CRITIC).keys() == {"first", "rest"}
        jax.tree.map(np.testing.assert_array_equal, ours, stock)
        wrapped_model = TraceInfoMax_ELBO(concat()).wrap_model(model)
        traces = [
            handlers.trace(handlers.seed(program, 0)).get_trace(*case.args)
            for program in (model, wrapped_model)
        ]
        assert list(traces[1]) == [*traces[0], CRITIC]
        for name, site in traces[0].items():
            np.testing.assert_array_equal(site["value"], traces[1][name]["value"])

    def test_is_declared_once(self) -> None:
        model = programs.vae().model
        objective = TraceInfoMax_ELBO(concat(), base=_WithParameter())
        once = objective.wrap_model(model)
        assert objective.wrap_model(once) is once
        over = TraceMMD_ELBO(base=objective)
        assert over.wrap_model(once) is once
        trace = handlers.trace(handlers.seed(over.wrap_model(model), 0)).get_trace(programs.data())
        params = [name for name, site in trace.items() if site["type"] == "param"]
        assert params == ["own", "decoder", CRITIC]
        assert TraceInfoMax_ELBO(concat(width=9)).wrap_model(once) is not once

    def test_a_model_runs_elsewhere_too(self) -> None:
        def model(x: Array | None = None) -> None:
            with numpyro.plate("data", 12):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        x = programs.data(12, 2)
        program = TraceInfoMax_ELBO(concat(2)).wrap_model(model)
        predictive = Predictive(program, num_samples=3)
        assert jax.jit(predictive)(jax.random.key(0))["x"].shape == (3, 12, 2)
        density, _ = log_density(program, (x,), {}, {"z": jnp.zeros((12, 2))})
        expected, _ = log_density(model, (x,), {}, {"z": jnp.zeros((12, 2))})
        assert density == expected
        guide = AutoNormal(program)
        svi = SVI(program, guide, Adam(1e-2), loss=TraceInfoMax_ELBO(concat(2)))
        shapes = jax.eval_shape(lambda: svi.get_params(svi.init(jax.random.key(0), x)))
        assert shapes.keys() == {CRITIC, "z_auto_loc", "z_auto_scale"}


@dataclass(frozen=True)
class Quadratic:
    """The log density ratio of two jointly normal numbers, up to its coefficients."""

    params: Any = None

    def init(self, rng_key: Array) -> Array:
        return jnp.zeros(4)

    def bind(self, params: Array) -> Quadratic:
        return Quadratic(params)

    def __call__(self, x: Array, z: Array) -> Array:
        return self.polynomial(x, z[:, 0])

    def all_pairs(self, x: Array, z: Array) -> Array:
        return self.polynomial(x[:, None], z[:, 0])

    def polynomial(self, x: Array, z: Array) -> Array:
        a, b, c, d = self.params
        return a + b * x * x + c * x * z + d * z * z


def linear_gaussian(x: np.ndarray, batch: int) -> Programs:
    """z ~ N(0, 1), x | z ~ N(z / 2, 1), and the guide N(a x, s²) with a and s to learn."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x), subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(0.5 * z, 1.0), obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        slope = numpyro.param("slope", 0.2)
        scale = numpyro.param("scale", 0.8, constraint=constraints.positive)
        with numpyro.plate("data", len(x), subsample_size=batch) as index:
            numpyro.sample("z", dist.Normal(slope * jnp.asarray(x)[index], scale))

    return Programs(model, guide, (x,))


def information(slope: Any, scale: Any) -> Any:
    return 0.5 * np.log1p((slope / scale) ** 2)


def best_information(alpha: float) -> float:
    """I at the minimum of the objective itself, whose terms are all known, by a grid search."""
    slope, scale = np.meshgrid(np.linspace(0.0, 2.0, 801), np.linspace(0.02, 1.2, 801))
    reconstruction = 0.5 * ((1 - 0.5 * slope) ** 2 + 0.25 * scale**2)
    kl = 0.5 * (scale**2 + slope**2 - 1) - np.log(scale)
    loss = reconstruction + kl - alpha * information(slope, scale)
    return float(information(slope, scale).flat[loss.argmin()])


class TestTraining:
    def test_alpha_raises_the_true_information_to_where_the_objective_is_best(self) -> None:
        """Standard normal data, so that I = ½ log(1 + a²/s²), which the critic comes to know."""
        x = programs.data(4000, 1)[:, 0]
        x = (x - x.mean()) / x.std()
        case = linear_gaussian(x, batch=200)
        reached = []
        for alpha in (0.0, 0.5):
            objective = TraceInfoMax_ELBO(Quadratic(), alpha, negatives="all")
            optim = Adam(lambda step: 4e-2 * 0.994**step)
            svi = numpyro_backend.SVI(case.model, case.guide, optim, loss=objective)
            params = svi.run(jax.random.key(0), 600, *case.args, progress_bar=False).params
            true = float(information(params["slope"], params["scale"]))
            assert true == pytest.approx(best_information(alpha), rel=0.05)
            reached.append(true)

            noise = np.random.default_rng(3).normal(size=len(x))
            z = params["slope"] * x + params["scale"] * noise
            scores = score_all_pairs(objective.bind_critic(params), x[:1000], z[:1000, None])
            off_diagonal = scores[~np.eye(1000, dtype=bool)]
            estimate = nwj(jnp.diagonal(scores), off_diagonal).estimate
            assert float(estimate) == pytest.approx(true, abs=0.05)
        assert reached[0] < reached[1]

    def test_with_numpyros_own_svi_and_with_a_progress_bar(self) -> None:
        case, objective = programs.vae(num=80, batch=64), TraceInfoMax_ELBO(Linen())
        ours = numpyro_backend.SVI(case.model, case.guide, Adam(1e-2), loss=objective)
        wrapped_model = objective.wrap_model(case.model)
        stock = SVI(wrapped_model, case.guide, Adam(1e-2), loss=objective)
        results = [
            svi.run(jax.random.key(0), 40, *case.args, progress_bar=shown)
            for svi, shown in ((ours, False), (stock, True))
        ]
        np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-9)
        assert results[0].losses[-10:].mean() < results[0].losses[:10].mean()
        evaluated = jax.jit(ours.evaluate)(results[0].state, *case.args)
        assert float(evaluated) == pytest.approx(
            float(jax.jit(stock.evaluate)(results[1].state, *case.args)), rel=1e-9
        )

    def test_numpyros_own_svi_needs_the_wrapped_model(self) -> None:
        case = programs.vae()
        svi = SVI(case.model, case.guide, Adam(1e-2), loss=TraceInfoMax_ELBO(concat()))
        with pytest.raises(ValueError, match=r"use numpyro_backend.SVI, or pass elbo.wrap_model"):
            svi.run(jax.random.key(0), 1, *case.args, progress_bar=False)

    def test_resumes_from_saved_parameters(self) -> None:
        case = programs.vae(num=80, batch=64)
        svi = numpyro_backend.SVI(
            case.model, case.guide, Adam(1e-2), loss=TraceInfoMax_ELBO(concat())
        )
        params = declared(TraceInfoMax_ELBO(concat()), case)
        params = jax.tree.map(lambda leaf: 2 * leaf, params)
        start = jax.jit(lambda: svi.init(jax.random.key(1), *case.args, init_params=params))()
        resumed = svi.get_params(start)
        jax.tree.map(np.testing.assert_allclose, resumed[CRITIC], params[CRITIC])

    @pytest.mark.parametrize("base", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
    def test_the_state_of_the_model_is_that_of_the_first_particle(
        self, base: Callable[..., Any]
    ) -> None:
        (model, guide, args), _ = _counting(4)
        critic, key = concat(1, 1), jax.random.key(0)

        @jax.jit
        def states() -> tuple[Any, Any]:
            params = {"loc": 0.5, "state": {"runs": jnp.asarray(6.0), "z": jnp.zeros(4)}}
            ours = TraceInfoMax_ELBO(critic, base=base(num_particles=3))
            run = {**params, CRITIC: critic.init(key)}, ours.wrap_model(model), guide, *args
            state = ours.loss_with_mutable_state(key, *run)["mutable_state"]
            first = jax.random.split(key, 3)[0]
            stock = Trace_ELBO().loss_with_mutable_state(first, params, model, guide, *args)
            return state["state"], stock["mutable_state"]["state"]

        ours, stock = states()
        assert ours["runs"] == stock["runs"] == 7
        np.testing.assert_allclose(ours["z"], stock["z"])

    def test_update_is_compiled_once(self) -> None:
        (model, guide, args), calls = _counting(64)
        loss = TraceInfoMax_ELBO(concat(1, 1))
        svi = numpyro_backend.SVI(model, guide, Adam(1e-2), loss=loss)
        state = svi.init(jax.random.key(0), *args)
        update = jax.jit(svi.update)
        state, _ = update(state, *args)
        traced = len(calls)
        for _ in range(3):
            state, _ = update(state, *args)
        assert len(calls) == traced
        assert state.mutable_state["state"]["runs"] == 1 + 4

    def test_composes_with_the_other_penalised_objective(self) -> None:
        stock = TraceMeanField_ELBO()
        mmd = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form", base=stock)
        alone = TraceInfoMax_ELBO(concat(), 0.7, base=stock)
        over, under = (
            TraceInfoMax_ELBO(concat(), 0.7, base=mmd),
            TraceMMD_ELBO(0.0, 3.0, estimator="closed_form", base=alone),
        )
        case = wrapped(alone, programs.vae())
        steps = seeded(stock, mmd, alone, over, under, case=case)
        expected = jax.tree.map(lambda a, b, c: b + c - a, *steps[:3])
        for step in steps[3:]:
            jax.tree.map(
                lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10),
                step,
                expected,
            )

    def test_trains_beside_the_parameters_of_the_base(self) -> None:
        (model, guide, args), _ = _counting(64)
        objective = TraceInfoMax_ELBO(concat(1, 1), base=_WithParameter())
        svi = numpyro_backend.SVI(model, guide, Adam(0.1), loss=objective)
        params = svi.run(jax.random.key(0), 300, *args, progress_bar=False).params
        assert params["own"] == pytest.approx(3.0, abs=0.05)
        assert params.keys() == {"own", "loc", CRITIC}

    def test_a_point_mass_guide_without_kl(self) -> None:
        """A deterministic encoder: β=0 removes the KL, which has no value."""
        model, _, (x,) = programs.vae(num=64)

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                z = x @ numpyro.param("encoder", jnp.full((3, 2), 0.1))
                numpyro.sample("z", dist.Delta(z, event_dim=1))

        objectives = [
            TraceInfoMax_ELBO(concat(), 1.0, 0.0, base=base)
            for base in (None, Trace_ELBO(), TraceGraph_ELBO())
        ]
        case = wrapped(objectives[0], Programs(model, guide, (x,)))
        (expected, _), *others = seeded(*objectives, case=case)
        assert math.isfinite(expected)
        for loss, grads in others:
            assert loss == pytest.approx(expected)
            assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))

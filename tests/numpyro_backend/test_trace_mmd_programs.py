"""TraceMMD_ELBO on the programs people write: plates, groups, priors, guides, training."""

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
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from numpyro.optim import Adam
from numpyro.primitives import mutable

import numpyro_backend
from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.kernels import IMQ, RBF
from numpyro_backend.penalised_elbo import penalty_key
from numpyro_backend.rows import Rows
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.test_trace_mmd_elbo import (
    Params,
    averages_to,
    evaluate_shapes,
    initial,
    neutral,
    penalties,
    penalty,
    seeded,
)

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestUnbiased:
    """Where the guide draws from the prior, the penalty averages to 0."""

    @pytest.mark.parametrize(
        ("case", "particles"),
        [
            (programs.hierarchical(exact=True), {"num_particles": 3}),
            (programs.two_latents(exact=True), {}),
            (
                programs.covariate_prior(exact=True),
                {"num_particles": 3, "vectorize_particles": False},
            ),
        ],
        ids=["hierarchical", "two latents", "covariates"],
    )
    def test_exact_conditional_prior(self, case: Programs, particles: dict) -> None:
        values = penalties(TraceMMD_ELBO(0.0, 2.0, **particles), case, 150)
        assert averages_to(values, 0.0)
        assert values.std() > 0

    @pytest.mark.parametrize("particles", [1, 2, 5])
    def test_the_penalty_draws_with_a_key_of_its_own(self, particles: int) -> None:
        key = jax.random.key(0)
        bases = jax.random.split(key, max(particles, 2))
        assert not (bases == penalty_key(key, particles)).any()

    def test_the_prior_is_drawn_for_the_same_minibatch(self) -> None:
        """Guide and prior are all but the same points, so that even the biased MMD² is 0."""

        def narrow(x: Array) -> None:
            with numpyro.plate("data", len(x), subsample_size=5) as index:
                numpyro.sample("z", dist.Normal(jnp.asarray(x)[index, 0], 1e-6))

        case = Programs(narrow, narrow, (programs.data(200),))
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="biased", num_particles=2)
        assert penalty(objective, case) == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize(
        ("estimator", "masks_model", "masks_guide"),
        [("closed_form", True, True), ("biased", True, False), ("biased", False, True)],
    )
    def test_masked_rows_of_the_prior_count_for_nothing(
        self, estimator: Any, masks_model: bool, masks_guide: bool
    ) -> None:
        model, guide, (x,) = programs.covariate_prior()
        mask = np.arange(len(x)) % 3 != 0
        masked = [
            handlers.mask(program, mask=jnp.asarray(mask)) if is_masked else program
            for program, is_masked in ((model, masks_model), (guide, masks_guide))
        ]
        moved = np.where(mask[:, None], x, x + 50.0)
        objective = TraceMMD_ELBO(0.0, 2.0, estimator=estimator)
        first, second = (penalty(objective, Programs(*masked, (data,))) for data in (x, moved))
        assert first == pytest.approx(second, rel=1e-9)

    def test_a_joint_mismatch_is_seen_that_no_marginal_shows(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 60):
                z1 = numpyro.sample("z1", dist.Normal(0.0, 1.0))
                numpyro.sample("z2", dist.Normal(0.9 * z1, math.sqrt(1 - 0.81)))

        def guide() -> None:
            with numpyro.plate("data", 60):
                numpyro.sample("z1", dist.Normal(0.0, 1.0))
                numpyro.sample("z2", dist.Normal(0.0, 1.0))

        values = penalties(TraceMMD_ELBO(0.0, 2.0), Programs(model, guide, ()), 60)
        assert values.mean() > 8 * values.std(ddof=1) / math.sqrt(60)

    def test_particles_of_a_global_latent(self) -> None:
        """Outside plates N is 1 and the particles are the rows: θ ~ N(1.5, 0.8) against N(0, 1)."""
        case = programs.hierarchical(exact=True)
        closed, sampled = (
            TraceMMD_ELBO(0.0, 2.0, estimator=estimator, sites=["theta"], num_particles=6)
            for estimator in ("closed_form", "unbiased")
        )
        expected = (
            math.sqrt(1 / (1 + 2 * 0.64))
            + math.sqrt(1 / 3)
            - 2 * math.sqrt(1 / 2.64) * math.exp(-(1.5**2) / (2 * 2.64))
        )
        assert penalty(closed, case) == pytest.approx(expected, rel=1e-9)
        assert averages_to(penalties(sampled, case, 100), expected)


class TestNestedPlates:
    def test_each_group_has_its_own_scale(self) -> None:
        """N is 6 for the groups and 24 for the items; for a point mass at 0 the MMD is known."""

        def guide(x: Array) -> None:
            with numpyro.plate("groups", 6, dim=-1):
                zero = jnp.zeros((6, 2)) * numpyro.param("one", 1.0)
                numpyro.sample("outer", dist.Delta(zero, event_dim=1))
                with numpyro.plate("items", 4, dim=-2):
                    numpyro.sample("z", dist.Delta(jnp.zeros((4, 6, 2)) * zero, event_dim=1))

        model, _, args = programs.nested()
        # d=2 and ℓ²=2; the items' prior, N(outer, 1), is the standard normal here as well.
        expected = 1 + 2 / (2 + 2) - 2 * 2 / (2 + 1)
        for sites, total in ((["outer"], 6), (["z"], 24), (None, 6 + 24)):
            objective = TraceMMD_ELBO(0.0, 2.0, sites=sites, estimator="closed_form")
            case = Programs(model, guide, args)
            assert penalty(objective, case) == pytest.approx(total * expected, rel=1e-9)

    def test_gradients_are_finite(self) -> None:
        for case in (programs.nested(), programs.sequences()):
            ((loss, grads),) = seeded(TraceMMD_ELBO(0.5, 10.0, num_particles=3), case=case)
            assert math.isfinite(loss)
            assert all(jnp.isfinite(grad).all() for grad in grads.values())


class TestPriors:
    def test_a_learned_prior_feels_the_penalty(self) -> None:
        def model(x: Array) -> None:
            loc = numpyro.param("prior_loc", 3.0)
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(loc, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

        case = Programs(model, guide, (programs.data(),))
        objectives = [
            TraceMMD_ELBO(1.0, 5.0, estimator=estimator)
            for estimator in ("unbiased", "biased", "closed_form")
        ]
        for _, grads in seeded(*objectives, case=case):
            assert grads["prior_loc"] > 0, "the prior should move towards the posterior"
            assert grads["loc"] != 0

    def test_the_penalty_reaches_the_latents_that_the_prior_depends_on(self) -> None:
        objectives = Trace_ELBO(), TraceMMD_ELBO(0.0, 50.0, base=Trace_ELBO())
        (_, base), (_, ours) = seeded(*objectives, case=programs.hierarchical())
        assert ours["theta_loc"] != pytest.approx(float(base["theta_loc"]))

    @pytest.mark.parametrize("particles", [1, 3])
    def test_the_likelihood_is_not_computed_for_the_prior(self, particles: int) -> None:
        calls: list[str] = []

        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                try:
                    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                except Exception:
                    z = jnp.zeros(len(x))
                calls.append("decoder")
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(x[:, 0], 1.0))

        case = Programs(model, guide, (programs.data(),))
        evaluate_shapes(TraceMMD_ELBO(prior_draws=5, num_particles=particles), case)
        assert calls == ["decoder"]


class TestGuides:
    def test_a_point_mass_guide_without_kl(self) -> None:
        """The deterministic encoder of a WAE: α=1 removes the KL."""
        model, _, (x,) = programs.vae(num=30)

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                z = x @ numpyro.param("encoder", jnp.full((3, 2), 2.0))
                numpyro.sample("z", dist.Delta(z, event_dim=1))

        svi = SVI(model, guide, Adam(3e-2), loss=TraceMMD_ELBO(1.0, 1000.0))
        params = svi.run(jax.random.key(0), 150, x, progress_bar=False).params
        spread = (x @ params["encoder"]).var(0).mean()
        assert spread == pytest.approx(1.0, abs=0.45), "towards the prior's variance"

    def test_auto_normal(self) -> None:
        model, _, args = programs.vae()
        case = Programs(model, AutoNormal(model), args)
        exact = penalty(TraceMMD_ELBO(0.0, 2.0, estimator="closed_form"), case)
        sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=2, num_particles=2)
        assert averages_to(penalties(sampled, case, 100), exact)

    def test_auto_normal_kl_is_reweighted_whole(self) -> None:
        model, _, args = programs.vae()
        guide = AutoNormal(model)
        case = Programs(model, guide, args)
        weights = 0.0, 0.5, 1.0
        objectives = [TraceMMD_ELBO(w, 1 - w + 1e-12, base=Trace_ELBO()) for w in weights]
        (none, _), (half, _), (whole, _) = seeded(*objectives, case=case)
        _, guide_key = jax.random.split(jax.random.key(3))
        site = handlers.trace(handlers.seed(guide, guide_key)).get_trace(*args)["z"]
        prior = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
        kl = (site["fn"].log_prob(site["value"]) - prior.log_prob(site["value"])).sum()
        assert none - whole == pytest.approx(float(kl), rel=1e-6)
        assert none - half == pytest.approx(0.5 * float(kl), rel=1e-6)

    @pytest.mark.parametrize("autoguide", [AutoDelta, AutoMultivariateNormal])
    def test_latents_of_any_autoguide_are_penalised(self, autoguide: Callable[..., Any]) -> None:
        model, _, args = programs.vae()
        case = Programs(model, autoguide(model), args)
        assert penalties(TraceMMD_ELBO(0.0, 10.0, estimator="biased"), case, 2).min() > 0

    def test_a_guide_without_plates(self) -> None:
        model, guide, args = programs.covariate_prior()

        def bare(x: Array) -> None:
            loc = numpyro.param("weight", 1.0) * x[:, 0]
            numpyro.sample("z", dist.Normal(loc, 1.0))

        objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", base=Trace_ELBO())
        expected, value = (
            penalty(objective, Programs(model, program, args)) for program in (guide, bare)
        )
        assert value == pytest.approx(expected, rel=1e-12)

    def test_a_regularizer_sees_rows_and_data(self) -> None:
        seen: list[Rows] = []

        def regularizer(rows: Rows) -> Array:
            seen.append(rows)
            return 2.0 * rows.total * rows.values.mean()

        def guide(x: Array) -> None:
            with numpyro.plate("data", 20, subsample_size=5) as index:
                loc = jnp.asarray(x)[index, :2]
                numpyro.sample("z", dist.Normal(loc, 1e-6).to_event(1))

        model, _, args = programs.vae(num=20, batch=5)
        case = Programs(model, guide, args)
        base = Trace_ELBO(num_particles=3)
        objective = neutral(base=base, regularizer=regularizer, regularizer_weight=0.5)

        @jax.jit
        def step(params: Params) -> tuple[Array, Rows]:
            run = jax.random.key(0), params, case.model, case.guide, *case.args
            return objective.loss(*run) - base.loss(*run), seen[-1]

        value, rows = step(initial(case))
        assert rows.latents["z"].shape == (15, 2)
        assert rows.data["x"].shape == (15, 3)
        assert (rows.num_data, rows.total) == (5, 20)
        np.testing.assert_allclose(rows.data["x"][:, :2], rows.latents["z"], atol=1e-4)
        assert value == pytest.approx(20 * float(rows.values.mean()))


class TestBases:
    def test_the_penalty_reaches_the_gradient_over_any_base(self) -> None:
        """At α=1 the bases agree: what is left is the likelihood and the penalty."""
        bases = Trace_ELBO(), TraceGraph_ELBO(), TraceMeanField_ELBO()
        objectives = [TraceMMD_ELBO(1.0, 9.0, base=base) for base in bases]
        (expected, expected_grads), *others = seeded(*objectives, case=programs.vae())
        for loss, grads in others:
            assert loss == pytest.approx(expected, rel=1e-9)
            for name, grad in grads.items():
                np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-9, atol=1e-12)

    def test_discrete_latents_are_left_to_a_base_that_knows_them(self) -> None:
        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                y = numpyro.sample("y", dist.Bernoulli(0.5))
                z = numpyro.sample("z", dist.Normal(2.0 * y, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("y", dist.Bernoulli(numpyro.param("p", 0.4)))
                numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

        svi = SVI(model, guide, Adam(1e-2), loss=TraceMMD_ELBO(lambd=3.0, base=TraceGraph_ELBO()))
        result = svi.run(jax.random.key(0), 200, programs.data(), progress_bar=False)
        assert result.losses[-50:].mean() < result.losses[:20].mean()
        assert result.params["p"] != 0.4

    def test_composes_with_itself(self) -> None:
        stock = TraceMeanField_ELBO(num_particles=3)
        inner = TraceMMD_ELBO(0.0, 3.0, RBF(1.0), base=stock)
        outer = TraceMMD_ELBO(0.0, 5.0, IMQ(), base=inner)
        flat = TraceMMD_ELBO(0.0, 5.0, IMQ(), base=stock)
        losses = [loss for loss, _ in seeded(stock, inner, flat, outer, case=programs.vae())]
        assert losses[3] == pytest.approx(losses[1] + losses[2] - losses[0], rel=1e-9)


def _counting(num: int) -> tuple[Programs, list[str]]:
    """A model with a mutable site that counts its runs and takes in what they drew."""
    calls: list[str] = []

    def model(x: Array) -> None:
        calls.append("model")
        state = mutable("state", {"runs": jnp.zeros(()), "z": jnp.zeros(num)})
        with numpyro.plate("data", num):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        state["runs"] = state["runs"] + 1
        state["z"] = z

    def guide(x: Array) -> None:
        with numpyro.plate("data", num):
            numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.5), 1.0))

    return Programs(model, guide, (np.arange(float(num)),)), calls


class TestTraining:
    @pytest.mark.parametrize("base", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
    def test_the_state_is_that_of_the_first_particle(self, base: Callable[..., Any]) -> None:
        (model, guide, args), _ = _counting(4)
        key = jax.random.key(0)
        params = {"loc": 0.5, "state": {"runs": jnp.asarray(6.0), "z": jnp.zeros(4)}}

        def state_after(objective: Any, key: Array) -> Any:
            result = objective.loss_with_mutable_state(key, params, model, guide, *args)
            return result["mutable_state"]["state"]

        @jax.jit
        def states() -> list[Any]:
            keys = key, jax.random.split(key, 3)[0]
            return [
                (
                    state_after(TraceMMD_ELBO(base=base(num_particles=particles)), key),
                    state_after(Trace_ELBO(), first),
                )
                for particles, first in zip((1, 3), keys, strict=True)
            ]

        for ours, stock in states():
            assert ours["runs"] == stock["runs"] == 7
            np.testing.assert_allclose(ours["z"], stock["z"])

    def test_update_is_compiled_once(self) -> None:
        (model, guide, args), calls = _counting(4)
        svi = SVI(model, guide, Adam(1e-2), loss=TraceMMD_ELBO(0.0, 10.0))
        state = svi.init(jax.random.key(0), *args)
        update = jax.jit(svi.update)
        state, _ = update(state, *args)
        traced = len(calls)
        for _ in range(3):
            state, _ = update(state, *args)
        assert len(calls) == traced
        assert state.mutable_state["state"]["runs"] == 1 + 4

    def test_trains_with_and_without_a_progress_bar(self) -> None:
        case = programs.vae()
        svi = SVI(case.model, case.guide, Adam(1e-2), loss=TraceMMD_ELBO(0.0, 10.0))
        bar, none = (
            svi.run(jax.random.key(0), 40, *case.args, progress_bar=shown).losses
            for shown in (True, False)
        )
        np.testing.assert_allclose(bar, none, rtol=1e-9)
        assert none[-10:].mean() < none[:10].mean()

    def test_in_single_precision_without_rank_promotion(self) -> None:
        def standard(shape: tuple[int, ...]) -> dist.Distribution:
            return dist.Normal(jnp.zeros(shape), jnp.ones(shape)).to_event(1)

        def model(x: Array) -> None:
            with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
                z = numpyro.sample("z", standard((6, 2)))
                numpyro.sample("x", dist.Normal(z, jnp.ones((6, 2))).to_event(1), obs=x)

        def guide(x: Array) -> None:
            loc = numpyro.param("loc", jnp.zeros((6, 2)))
            with numpyro.plate("data", 6), handlers.mask(mask=jnp.arange(6) > 1):
                numpyro.sample("z", dist.Normal(loc + x, jnp.ones((6, 2))).to_event(1))

        args = jnp.arange(12, dtype="float32").reshape(6, 2)
        with jax.enable_x64(False), jax.numpy_rank_promotion("raise"):
            for estimator in ("unbiased", "closed_form"):
                objective = TraceMMD_ELBO(0.5, estimator=estimator, num_particles=2)
                params = {"loc": jnp.zeros((6, 2), "float32")}
                shape = jax.eval_shape(
                    lambda key, params, objective=objective: jax.value_and_grad(
                        lambda params: objective.loss(key, params, model, guide, args)
                    )(params),
                    jax.random.key(0),
                    params,
                )
                assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype("float32")}

    def test_the_penalty_moves_the_aggregated_posterior_to_the_prior(self) -> None:
        model, guide, (x,) = programs.vae(num=20)
        x = x + 4
        measure = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", base=Trace_ELBO())

        def train(objective: Any) -> float:
            svi = SVI(model, guide, Adam(5e-2), loss=objective)
            params = svi.run(jax.random.key(0), 100, x, progress_bar=False).params
            run = jax.random.key(1), params, model, guide, x
            return float(measure.loss(*run) - measure.base.loss(*run))

        assert train(TraceMMD_ELBO(0.0, 1000.0)) < 0.5 * train(TraceMeanField_ELBO())


class _WithParameter(Trace_ELBO):
    """An objective with a parameter of its own, which it draws to 3."""

    def wrap_model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            numpyro.param("own", 0.0)
            return model(*args, **kwargs)

        return wrapped

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: Params, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        result = super().loss_with_mutable_state(rng_key, param_map, *args, **kwargs)
        return {**result, "loss": result["loss"] + (param_map["own"] - 3.0) ** 2}


@pytest.mark.parametrize("objective", [_WithParameter(), TraceMMD_ELBO(base=_WithParameter())])
def test_svi_trains_the_parameters_of_the_objective(objective: Any) -> None:
    (model, guide, args), _ = _counting(4)
    svi = numpyro_backend.SVI(model, guide, Adam(0.1), loss=objective)
    params = svi.run(jax.random.key(0), 300, *args, progress_bar=False).params
    assert params["own"] == pytest.approx(3.0, abs=0.05)
    assert "loc" in params

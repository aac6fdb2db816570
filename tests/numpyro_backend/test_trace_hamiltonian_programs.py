"""TraceHamiltonian_ELBO on the programs people write: bounds, guides, training, memory."""

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
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive, Trace_ELBO
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
)
from numpyro.infer.initialization import init_to_value
from numpyro.infer.reparam import LocScaleReparam
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO, TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.test_trace_hamiltonian_elbo import (
    assert_evidence,
    assert_gradients,
    declared,
    fixed,
    log_normal,
    log_weights,
)
from tests.numpyro_backend.test_trace_mmd_elbo import (
    Params,
    assert_same_step,
    evaluate_shapes,
    initial,
)

double_precision = pytest.mark.usefixtures("quick_double_precision")

X = np.array([0.5, -1.0, 1.5])
HIERARCHY = log_normal(X, 2 * np.eye(3) + 1)
NEAR = {"v": 1.2, "z": (X + 0.2) / 2}


def normal_hierarchy() -> None:
    """θ ~ N(0, 1), z_i ~ N(θ, 1), x_i ~ N(z_i, 1), whose evidence is HIERARCHY."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(theta, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=X)


@double_precision
class TestPrograms:
    def test_a_support_that_depends_on_another_latent(self) -> None:
        """b ~ Uniform(0, a): the transform of b moves with a, at every step of the flow."""

        def model() -> None:
            a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
            b = numpyro.sample("b", dist.Uniform(0.0, a))
            numpyro.sample("x", dist.Normal(a + b, 1.0), obs=1.2)

        def guide() -> None:
            a = numpyro.sample("a", dist.LogNormal(numpyro.param("loc", 0.1), 0.9))
            fraction = dist.Kumaraswamy(1.2, 1.2)
            stretch = dist.transforms.AffineTransform(0.0, a, domain=fraction.support)
            numpyro.sample("b", dist.TransformedDistribution(fraction, [stretch]))

        a = np.linspace(0.0, 25.0, 5001)[1:, None]
        fractions = (np.arange(200) + 0.5) / 200
        likelihood = np.exp(-0.5 * (1.2 - a * (1 + fractions)) ** 2) / math.sqrt(2 * math.pi)
        evidence = math.log((a * np.exp(-a) * likelihood).mean(1).sum() * 0.005)
        assert_evidence(fixed(), Programs(model, guide, ()), evidence)

    def test_a_scan_in_model_and_guide(self) -> None:
        """z_t ~ N(0.9 z_{t-1}, 1), x_t ~ N(z_t, 1), each in one ``scan``, for w_t = exp z_t."""
        x = np.array([0.3, -0.4, 1.0, 0.2])

        def model() -> None:
            def step(z: Array, x: Array) -> tuple[Array, None]:
                w = numpyro.sample("w", dist.LogNormal(0.9 * z, 1.0))
                numpyro.sample("x", dist.Normal(jnp.log(w), 1.0), obs=x)
                return jnp.log(w), None

            scan(step, jnp.array(0.0), x)

        def guide() -> None:
            slope = numpyro.param("slope", 0.5)

            def step(z: Array, x: Array) -> tuple[Array, None]:
                w = numpyro.sample("w", dist.LogNormal(0.4 * z + slope * x, 0.9))
                return jnp.log(w), None

            scan(step, jnp.array(0.0), x)

        steps = np.arange(4.0)
        weights = np.tril(0.9 ** (steps[:, None] - steps))
        evidence = log_normal(x, weights @ weights.T + np.eye(4))
        assert_evidence(fixed(), Programs(model, guide, ()), evidence)

    def test_latents_in_another_order(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 3):
                a = numpyro.sample("a", dist.Normal(0.0, 1.0))
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                numpyro.sample("x", dist.Normal(b, 1.0), obs=X)

        def guide() -> None:
            slope = numpyro.param("slope", 0.5)
            with numpyro.plate("data", 3):
                b = numpyro.sample("b", dist.Normal(slope * X, 1.0))
                numpyro.sample("a", dist.Normal(slope * b, 0.8))

        assert_evidence(fixed(), Programs(model, guide, ()), log_normal(X, 3 * np.eye(3)))

    def test_factors_deterministic_sites_and_draws_of_the_guides_own(self) -> None:
        def model() -> None:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.deterministic("twice", 2 * z)
            numpyro.factor("x", dist.Normal(z, 1.0).log_prob(0.5))

        def guide() -> None:
            w = numpyro.sample("w", dist.Normal(0.0, 0.6), infer={"is_auxiliary": True})
            numpyro.sample("z", dist.Delta(2 * w, log_density=-math.log(2)))

        case, elbo = Programs(model, guide, ()), fixed()
        assert_evidence(elbo, case, log_normal(np.array([0.5]), 2 * np.eye(1)))
        predictive = Predictive(model, guide=elbo.refine(model, guide), num_samples=5)
        draws = predictive(jax.random.key(0))
        refined = Predictive(elbo.refine(model, guide), num_samples=5)
        _, guide_key = jax.random.split(jax.random.key(0))
        np.testing.assert_allclose(draws["twice"], 2 * refined(guide_key)["z"])

    def test_a_partly_observed_site(self) -> None:
        mask = np.array([True, False, True])

        def model() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            with numpyro.plate("data", 3):
                numpyro.sample("x", dist.Normal(theta, 1.0), obs=X, obs_mask=jnp.array(mask))

        def guide() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.5, 0.7))
            with numpyro.plate("data", 3), handlers.mask(mask=jnp.array(~mask)):
                numpyro.sample("x_unobserved", dist.Normal(theta, 1.1))

        assert_evidence(fixed(), Programs(model, guide, ()), log_normal(X[mask], np.eye(2) + 1))

    def test_effect_handlers_around_the_model(self) -> None:
        """Non-centred by a reparameterisation, observed by conditioning."""

        def unconditioned() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(theta, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0))

        observed = handlers.condition(unconditioned, data={"x": X})
        model = handlers.reparam(observed, config={"z": LocScaleReparam(0.0)})

        def guide() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.2, 0.7))
            with numpyro.plate("data", 3):
                numpyro.sample("z_decentered", dist.Normal((X - theta) / 2, 0.9))

        assert_evidence(fixed(), Programs(model, guide, ()), HIERARCHY)

    def test_a_scale_of_the_users(self) -> None:
        """Annealing of the KL: at a step of 0 the stock ELBO's loss."""

        def model() -> None:
            with numpyro.plate("data", 10, subsample_size=3):
                with handlers.scale(scale=0.3):
                    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=X)

        def guide() -> None:
            loc = numpyro.param("loc", jnp.zeros(3))
            with numpyro.plate("data", 10, subsample_size=3), handlers.scale(scale=0.3):
                numpyro.sample("z", dist.Normal(loc, 0.8))

        still = fixed(step_size=0.0, tempering="none")
        assert_same_step(still, Trace_ELBO(), Programs(model, guide, ()))

    def test_two_plates_subsampled_apart(self) -> None:
        """Labelled and unlabelled rows: neither latent depends on the other's minibatch."""

        def program(is_model: bool, tie: bool) -> Callable[[], None]:
            def run() -> None:
                theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
                for name, size in (("labelled", 10), ("unlabelled", 20)):
                    with numpyro.plate(name, size, subsample_size=5):
                        z = numpyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
                        if is_model:
                            numpyro.sample(f"x_{name}", dist.Normal(z, 0.5), obs=jnp.ones(5))
                            numpyro.factor(f"y_{name}", jnp.ones(5) * (theta if tie else 1.0))

            return run

        apart, tied = (
            Programs(program(True, tie), program(False, tie), ()) for tie in (False, True)
        )
        evaluate_shapes(fixed(), apart)
        with pytest.raises(ValueError, match="'theta' is outside plate 'labelled'"):
            evaluate_shapes(fixed(), tied)

    def test_a_discrete_latent_that_stays(self) -> None:
        """y ~ Bernoulli(0.4), z ~ N(y, 1), x ~ N(z, 1)."""

        def program(is_model: bool) -> Callable[[], None]:
            def run() -> None:
                y = numpyro.sample("y", dist.Bernoulli(0.4 if is_model else 0.5))
                loc, scale = (y, 1.0) if is_model else (0.3 + 0.6 * y, 0.8)
                z = numpyro.sample("z", dist.Normal(loc, scale))
                if is_model:
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.8)

            return run

        evidence = math.log(
            sum(
                weight * math.exp(log_normal(np.array([0.8 - y]), 2 * np.eye(1)))
                for y, weight in ((0, 0.6), (1, 0.4))
            )
        )
        case = Programs(program(True), program(False), ())
        assert_evidence(fixed(sites="z"), case, evidence)

    def test_random_layers_draw_the_same_at_every_step(self) -> None:
        """Dropout: its mask is one for the whole flow, so that the gradient is the loss's own."""
        _, guide, args = programs.vae(num=4)

        def thinned(x: Array) -> None:
            kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, x.shape)
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                loc = kept * programs._decode(z, 3)
                numpyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)

        assert_gradients(Programs(thinned, guide, args), TraceHamiltonian_ELBO(3))


@double_precision
class TestGuides:
    @pytest.mark.parametrize(
        "auto",
        [AutoNormal, AutoMultivariateNormal],
    )
    def test_automatic_guides(self, auto: Callable[..., Any]) -> None:
        """Of a hierarchy with a constrained latent: v = exp θ."""

        def model() -> None:
            v = numpyro.sample("v", dist.LogNormal(0.0, 1.0))
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(jnp.log(v), 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=X)

        guide = auto(model, init_scale=0.7, init_loc_fn=init_to_value(values=NEAR))
        assert_evidence(fixed(), Programs(model, guide, ()), HIERARCHY)

    def test_a_list_of_guides_in_which_one_latent_stays(self) -> None:
        guide = AutoGuideList(normal_hierarchy)
        guide.append(AutoDelta(handlers.block(normal_hierarchy, hide=["z", "x"])))
        guide.append(AutoNormal(handlers.block(normal_hierarchy, hide=["theta"])))
        elbo = TraceHamiltonian_ELBO(3, sites=["z"])
        grads = assert_gradients(Programs(normal_hierarchy, guide, ()), elbo)
        assert {"theta_auto_loc", "z_auto_loc", "hamiltonian.step_size"} < grads.keys()

    def test_prefactors_leave_the_refined_guide_alone(self) -> None:
        """They weight the objective; the refined guide's density is that of its draws."""
        case = Programs(normal_hierarchy, AutoNormal(normal_hierarchy, init_scale=0.8), ())
        plain = fixed()
        weighted = fixed(logp_prefactor=(1.0, 2.0, 2.0), logq_prefactor=(0.5, 1.0, 1.0))
        first, second = (log_weights(elbo, case, draws=3) for elbo in (plain, weighted))
        np.testing.assert_array_equal(first, second)

    def test_prefactors_weight_the_terms(self) -> None:
        """The loss is linear in each prefactor, and the slopes add up to it."""
        model, guide, args = programs.vae(num=5)
        params = initial(programs.vae(num=5))
        factors = [np.ones(6), *(np.ones(6) + np.eye(6)), np.array([0.0, 1, 1, 1, 1, 1])]
        elbos = [
            fixed(logp_prefactor=tuple(f[:3].tolist()), logq_prefactor=tuple(f[3:].tolist()))
            for f in factors
        ]
        run = jax.random.key(0), params, model, guide, *args
        loss, *losses, without = jax.jit(lambda: [elbo.loss(*run) for elbo in elbos])()
        slopes = [float(other - loss) for other in losses]
        assert sum(slopes) == pytest.approx(float(loss), rel=1e-9)
        assert float(without) == pytest.approx(float(loss) - slopes[0], rel=1e-9)
        # log(beta_0 / beta_K) d / 2 for each of 5 data in 2 dimensions.
        assert slopes[5] == pytest.approx(-5 * math.log(0.5), rel=1e-9)


@double_precision
class TestTraining:
    def test_trains_with_svi_in_one_compilation(self) -> None:
        runs: list[str] = []
        case = programs.vae(num=40, batch=10)

        def model(x: Array) -> None:
            runs.append("model")
            case.model(x)

        elbo = TraceHamiltonian_ELBO(3, 0.1, per_step=True, tempering="free")
        svi = numpyro_backend.SVI(model, case.guide, Adam(1e-2), elbo)
        state = jax.jit(svi.init)(jax.random.key(0), *case.args)
        start = svi.get_params(state)
        update, evaluate = jax.jit(svi.update), jax.jit(svi.evaluate)
        before = float(evaluate(state, *case.args))
        state, _ = update(state, *case.args)
        traced = len(runs)
        for _ in range(150):
            state, _ = update(state, *case.args)
        assert len(runs) == traced
        assert float(evaluate(state, *case.args)) < before
        end = svi.get_params(state)
        for name in ("hamiltonian.step_size", "hamiltonian.tempering_factors"):
            assert start[name].shape == (3,)
            assert not np.allclose(start[name], end[name])
            assert ((end[name] > 0) & (end[name] < (0.5 if "step" in name else 1))).all()

    def test_a_penalised_objective_declares_the_parameters_of_its_base(self) -> None:
        model, guide, args = programs.vae(num=8)
        objective = TraceMMD_ELBO(0.0, 5.0, base=TraceHamiltonian_ELBO(2, {"z": 0.1}, name="flow"))
        svi = numpyro_backend.SVI(model, guide, Adam(1e-2), objective)
        params = jax.eval_shape(lambda key: svi.get_params(svi.init(key, *args)), jax.random.key(0))
        flow = {"flow.step_size_z", "flow.beta_0"}
        assert params.keys() == {"encoder", "scale", "decoder"} | flow

    def test_the_objective_is_the_refined_guide_under_the_stock_elbo(self) -> None:
        """With NumPyro's own SVI too, whose trace of the refined guide has all parameters."""
        model, guide, args = programs.vae(num=8)
        elbo = TraceHamiltonian_ELBO(2)
        ours = numpyro_backend.SVI(model, guide, Adam(1e-2), elbo)
        stock = numpyro.infer.SVI(model, elbo.refine(model, guide), Adam(1e-2), Trace_ELBO())

        @jax.jit
        def losses() -> list[tuple[Array, Array]]:
            return [
                svi.update(svi.init(jax.random.key(0), *args), *args)[1] for svi in (ours, stock)
            ]

        first, second = losses()
        assert float(first) == pytest.approx(float(second), rel=1e-12)

    def test_stable_update_leaves_a_divergence_out(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 16):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(jnp.exp(3 * z), 1e-3), obs=jnp.ones(16))

        def guide() -> None:
            with numpyro.plate("data", 16):
                numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 1.0))

        elbo = TraceHamiltonian_ELBO(10, 0.4, max_step_size=5.0)
        svi = numpyro_backend.SVI(model, guide, Adam(1e-2), elbo)

        @jax.jit
        def step() -> tuple[Params, Params, Params, Array]:
            state = svi.init(jax.random.key(0))
            (spoilt, _), (after, loss) = svi.update(state), svi.stable_update(state)
            return *(svi.optim.get_params(s.optim_state) for s in (state, spoilt, after)), loss

        before, spoilt, after, loss = step()
        assert not np.isfinite(loss)
        for name, value in before.items():
            assert np.isnan(spoilt[name]), name
            assert after[name] == value, name

    def test_a_row_that_diverged_stays_where_it_was_drawn(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 2):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, jnp.array([1.0, 1e-200])), obs=jnp.ones(2))

        def guide() -> None:
            with numpyro.plate("data", 2):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        @jax.jit
        def draw() -> tuple[Array, Array, Array]:
            site = handlers.trace(handlers.seed(fixed().refine(model, guide), 0)).get_trace()["z"]
            start = handlers.trace(handlers.seed(guide, 0)).get_trace()["z"]["value"]
            return start, site["value"], site["fn"].log_prob(site["value"])

        start, end, log_prob = draw()
        assert start[0] != end[0]
        assert start[1] == end[1]
        np.testing.assert_array_equal(np.isnan(log_prob), [False, True])

    def test_predictive_moments_are_nearer_to_the_posterior(self) -> None:
        """A correlated posterior under AutoNormal: the refined guide's covariance is nearer."""
        x = np.array([1.0, 2.0, 0.5])

        def model() -> None:
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(a + b, 0.5).expand([3]).to_event(1), obs=x)

        truth = np.linalg.inv(np.eye(2) + 12 * np.ones((2, 2)))
        # The best diagonal normal, and a step size that is not the initial one.
        mean, scale = truth.sum(0)[0] * 4 * x.sum(), 13**-0.5

        def guide() -> None:
            for name in "ab":
                numpyro.sample(name, dist.Normal(numpyro.param("mean", 0.0), scale))

        elbo = TraceHamiltonian_ELBO(10, 1e-3, tempering="none")
        params = {"mean": mean, "hamiltonian.step_size": 0.2}
        errors = []
        for posterior in (guide, elbo.refine(model, guide)):
            predictive = Predictive(
                model,
                guide=posterior,
                params=params,
                num_samples=4000,
                parallel=True,
                return_sites=["a", "b"],
            )
            draws = predictive(jax.random.key(1))
            covariance = np.cov(np.stack([draws["a"], draws["b"]]))
            errors.append(np.linalg.norm(covariance - truth) / np.linalg.norm(truth))
        assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("double", [False, True])
def test_the_programs_dtype_is_kept(double: bool) -> None:
    """Of a latent without dims too."""
    seen = set()

    def model() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=X)
        seen.update((theta.dtype, z.dtype))

    elbo = TraceHamiltonian_ELBO(3, np.array(0.1), tempering="free")
    with jax.enable_x64(double):
        svi = numpyro_backend.SVI(model, AutoNormal(model), Adam(1e-2), elbo)
        state = jax.eval_shape(svi.init, jax.random.key(0))
        after, loss = jax.eval_shape(svi.update, state)
    assert seen == {loss.dtype} == {jnp.dtype("float64" if double else "float32")}
    assert jax.tree.leaves(after) == jax.tree.leaves(state)


def test_memory_does_not_grow_with_the_steps() -> None:
    """The gradient of a VAE (784-256-20, a minibatch of 128): 50 steps against 1."""

    def dense(name: str, sizes: tuple[int, int], inputs: Array) -> Array:
        weight = numpyro.param(f"{name}.weight", jnp.full(sizes, 0.01))
        return inputs @ weight + numpyro.param(f"{name}.bias", jnp.zeros(sizes[1]))

    def model(x: Array) -> None:
        with numpyro.plate("data", 60_000, subsample_size=128):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
            logits = dense("out", (256, 784), jnp.tanh(dense("code", (20, 256), z)))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", 60_000, subsample_size=128):
            hidden = jnp.tanh(dense("hidden", (784, 256), x))
            scale = jnp.exp(dense("log_scale", (256, 20), hidden))
            loc = dense("loc", (256, 20), hidden)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    args = (np.zeros((128, 784), np.float32),)
    memory = []
    for num_steps in (1, 50):
        elbo = TraceHamiltonian_ELBO(num_steps)
        case = declared(Programs(model, guide, args), elbo)

        def loss(params: Params, elbo: TraceHamiltonian_ELBO = elbo, case: Any = case) -> Array:
            return elbo.loss(jax.random.key(0), params, *case[:2], *case.args)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(initial(case)).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert memory[1] < 1.5 * memory[0]

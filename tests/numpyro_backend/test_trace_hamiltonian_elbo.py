"""TraceHamiltonian_ELBO: a bound that is a bound, checked against exact evidence."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import compute_log_probs
from scipy.optimize import minimize

from numpyro_backend import TraceHamiltonian_ELBO, TraceMMD_ELBO
from numpyro_backend.rows import Rows
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.test_trace_mmd_elbo import (
    PARTICLES,
    assert_same_step,
    evaluate_shapes,
    initial,
)

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def declared(case: Programs, elbo: TraceHamiltonian_ELBO | TraceMMD_ELBO) -> Programs:
    return case._replace(model=elbo.wrap_model(case.model))


def log_weights(
    elbo: TraceHamiltonian_ELBO, case: Programs, *, draws: int, params: dict | None = None
) -> np.ndarray:
    """Log importance weights of draws of the whole model."""
    model, guide, args = case
    refined = elbo.refine(model, guide)
    params = initial(declared(case, elbo)) if params is None else params

    def log_weight(key: Array) -> Array:
        guide_key, model_key = jax.random.split(key)
        seeded = handlers.seed(refined, guide_key)
        guide_terms, trace = compute_log_probs(seeded, args, {}, params)
        replayed = handlers.replay(handlers.seed(model, model_key), trace)
        model_terms, _ = compute_log_probs(replayed, args, {}, params)
        return sum(model_terms.values()) - sum(guide_terms.values())

    keys = jax.random.split(jax.random.key(1), draws)
    return np.asarray(jax.jit(jax.vmap(log_weight))(keys))


def assert_evidence(
    elbo: TraceHamiltonian_ELBO, case: Programs, exact: Any, *, draws: int = 20_000
) -> None:
    """E[w] is the evidence within 4 standard errors, and the ELBO is below it."""
    weights = log_weights(elbo, case, draws=draws)
    ratio = np.exp(weights - float(exact))
    error = ratio.std() / math.sqrt(draws)
    assert error < 0.1, "too few draws to tell"
    assert abs(ratio.mean() - 1) < 4 * error
    assert weights.mean() < float(exact) + 4 * weights.std() / math.sqrt(draws)


def fixed(num_steps: int = 3, step_size: Any = 0.15, **settings: Any) -> TraceHamiltonian_ELBO:
    return TraceHamiltonian_ELBO(num_steps, step_size, learn=False, **settings)


class LinearGaussian(NamedTuple):
    programs: Programs
    evidence: float


def linear_gaussian(seed: int) -> LinearGaussian:
    """z ~ N(0, I), x | z ~ N(A z + b, noise), and a bad diagonal guide."""
    rng = np.random.default_rng(seed)
    dim, out = 1 + seed % 4, 2 + seed % 3
    weight, shift, noise = rng.normal(size=(out, dim)), rng.normal(size=out), rng.uniform(0.5, 1.5)
    x = weight @ rng.normal(size=dim) + shift + noise * rng.normal(size=out)
    covariance = weight @ weight.T + noise**2 * np.eye(out)
    precision = np.eye(dim) + weight.T @ weight / noise**2
    mean = np.linalg.solve(precision, weight.T @ (x - shift) / noise**2)
    loc = mean + 0.4 * rng.normal(size=dim)
    scale = np.sqrt(np.diagonal(np.linalg.inv(precision))) * rng.uniform(1.0, 1.4, size=dim)

    def model() -> None:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(weight @ z + shift, noise).to_event(1), obs=x)

    def guide() -> None:
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return LinearGaussian(Programs(model, guide, ()), log_normal(x - shift, covariance))


def log_normal(x: np.ndarray, covariance: np.ndarray) -> float:
    """log N(x; 0, covariance)."""
    _, log_det = np.linalg.slogdet(2 * math.pi * covariance)
    return float(-0.5 * (log_det + x @ np.linalg.solve(covariance, x)))


def warm(beta_0: Array, k: int, num_steps: int) -> Array:
    """A schedule of the user's that does not end at 1."""
    return beta_0 + (0.9 - beta_0) * k / num_steps


TEMPERINGS = ["quadratic", "free", "none", "constant", warm]
STEPS = [1, 3, 10, 3, 10]
BETAS = [0.3, 0.7, 0.3, 0.6, 1.0]


def settings(seed: int) -> dict[str, Any]:
    num_steps, dim = STEPS[seed], 1 + seed % 4
    step_size: Any = 0.15
    if seed == 2:
        step_size = np.linspace(0.05, 0.2, num_steps)
    elif seed in (1, 3):
        step_size = np.linspace(0.08, 0.2, dim)
    return {
        "num_steps": num_steps,
        "step_size": step_size,
        "beta_0": BETAS[seed],
        "tempering": TEMPERINGS[seed],
        "per_step": seed == 2,
    }


class TestEvidence:
    @pytest.mark.parametrize("seed", range(5))
    def test_linear_gaussian(self, seed: int) -> None:
        case = linear_gaussian(seed)
        assert_evidence(fixed(**settings(seed)), case.programs, case.evidence)

    def test_gamma_poisson(self) -> None:
        """Constrained support: rate ~ Gamma(3, 2), counts ~ Poisson(rate)."""
        counts = np.array([2.0, 4.0, 1.0])

        def model() -> None:
            rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
            with numpyro.plate("data", 3):
                numpyro.sample("x", dist.Poisson(rate), obs=counts)

        def guide() -> None:
            numpyro.sample("rate", dist.LogNormal(0.3, 0.6))

        total, num = counts.sum(), len(counts)
        evidence = (
            3 * math.log(2)
            - math.lgamma(3)
            + math.lgamma(3 + total)
            - (3 + total) * math.log(2 + num)
            - sum(math.lgamma(count + 1) for count in counts)
        )
        assert_evidence(fixed(4, tempering="free"), Programs(model, guide, ()), evidence)

    def test_simplex_support(self) -> None:
        """Unconstrained and constrained values differ in shape: a Dirichlet-multinomial."""
        counts, concentration = np.array([3, 1, 2]), np.array([2.0, 1.0, 1.5])

        def model() -> None:
            p = numpyro.sample("p", dist.Dirichlet(concentration))
            numpyro.sample("x", dist.Multinomial(6, p), obs=counts)

        def guide() -> None:
            numpyro.sample("p", dist.Dirichlet(jnp.array([3.0, 2.0, 3.0])))

        evidence = math.lgamma(7) - sum(math.lgamma(count + 1) for count in counts)
        evidence += math.lgamma(4.5) - math.lgamma(10.5)
        evidence += sum(
            math.lgamma(a + count) - math.lgamma(a)
            for a, count in zip(concentration, counts, strict=True)
        )
        assert_evidence(fixed(step_size=np.array([0.1, 0.2])), Programs(model, guide, ()), evidence)

    def test_nested_plates_with_masked_items(self) -> None:
        """a_j ~ N(0, 1), z_ij ~ N(a_j, 1), x_ij ~ N(z_ij, 1), of which some are missing."""
        x, present = programs.data(3, 2), np.array([[True, True], [False, True], [True, False]])

        def model() -> None:
            with numpyro.plate("groups", 2, dim=-1):
                a = numpyro.sample("a", dist.Normal(0.0, 1.0))
                with numpyro.plate("items", 3, dim=-2), handlers.mask(mask=jnp.array(present)):
                    z = numpyro.sample("z", dist.Normal(a, 1.0))
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with numpyro.plate("groups", 2, dim=-1):
                a = numpyro.sample("a", dist.Normal(x.mean(0) / 2, 0.8))
                with numpyro.plate("items", 3, dim=-2), handlers.mask(mask=jnp.array(present)):
                    numpyro.sample("z", dist.Normal((a + x) / 2, 0.9))

        evidence = sum(
            log_normal(x[rows, j], 2 * np.eye(rows.sum()) + 1) for j, rows in enumerate(present.T)
        )
        assert_evidence(fixed(), Programs(model, guide, ()), evidence)

    @pytest.mark.parametrize("sites", [["z"], "theta"])
    def test_some_latents_stay(self, sites: Any) -> None:
        x = programs.data(2, 1)[:, 0]

        def model() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            with numpyro.plate("data", 2):
                z = numpyro.sample("z", dist.Normal(theta, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.2, 0.9))
            with numpyro.plate("data", 2):
                numpyro.sample("z", dist.Normal(theta + 0.2, 0.9))

        exact = log_normal(x, 2 * np.eye(2) + 1)
        assert_evidence(fixed(sites=sites), Programs(model, guide, ()), exact)

    def test_event_dims_of_the_guides_own(self) -> None:
        """A vector in the model, two scalars in the guide: each Jacobian counts once."""

        def model() -> None:
            z = numpyro.sample("z", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(jnp.log(z), 1.0).to_event(1), obs=jnp.array([0.5, -1]))

        def guide() -> None:
            numpyro.sample("z", dist.LogNormal(jnp.array([0.3, -0.4]), 0.9))

        exact = log_normal(np.array([0.5, -1]), 2 * np.eye(2))
        assert_evidence(fixed(), Programs(model, guide, ()), exact)


class TestIdentity:
    def test_a_step_of_zero_is_the_stock_elbo_over_mapped_particles(self) -> None:
        ours = fixed(step_size=0.0, tempering="none", **PARTICLES["mapped"])
        assert_same_step(ours, Trace_ELBO(**PARTICLES["mapped"]), programs.nested())


def assert_gradients(case: Programs, elbo: Any) -> dict[str, Any]:
    """The gradient in every parameter is that of finite differences."""
    model, guide, args = declared(case, elbo)
    params = initial(Programs(model, guide, args))

    @jax.jit
    def step(params: dict[str, Array]) -> Any:
        return jax.value_and_grad(
            lambda params: elbo.loss(jax.random.key(3), params, model, guide, *args)
        )(params)

    _, grads = step(params)
    assert params
    for name, value in params.items():
        leaves, structure = jax.tree.flatten(value)
        directions = [np.linspace(1.0, 2.0, leaf.size).reshape(leaf.shape) for leaf in leaves]
        losses = []
        for shift in (1e-5, -1e-5):
            moved = [leaf + shift * d for leaf, d in zip(leaves, directions, strict=True)]
            losses.append(step({**params, name: structure.unflatten(moved)})[0])
        slope = float(losses[0] - losses[1]) / 2e-5
        along = sum(
            (leaf * d).sum()
            for leaf, d in zip(jax.tree.leaves(grads[name]), directions, strict=True)
        )
        assert float(along) == pytest.approx(slope, rel=1e-6, abs=1e-6), name
    return grads


class TestGradients:
    @pytest.mark.parametrize(
        ("tempering", "per_step"),
        [("quadratic", True), ("free", False), (warm, False)],
        ids=["quadratic", "free", "callable"],
    )
    def test_equal_finite_differences(self, tempering: Any, per_step: bool) -> None:
        step_size = np.array([[0.1, 0.2]] * 3 if per_step else 0.1)
        elbo = TraceHamiltonian_ELBO(3, step_size, per_step=per_step, tempering=tempering)
        grads = assert_gradients(programs.vae(num=6, batch=4), elbo)
        temperature = "tempering_factors" if tempering == "free" else "beta_0"
        flow = {"hamiltonian.step_size", f"hamiltonian.{temperature}"}
        assert grads.keys() == {"encoder", "scale", "decoder"} | flow
        assert all(np.any(grad != 0) for grad in grads.values())

    def test_reach_a_latent_that_stays_through_the_flow(self) -> None:
        """θ is drawn by the guide and conditions the flow of z: its gradient runs through both."""
        step_size = {"z": 0.2}
        elbo = TraceHamiltonian_ELBO(3, step_size, sites="z", name="flow")
        grads = assert_gradients(programs.hierarchical(num=4), elbo)
        assert {"theta_loc", "weight", "flow.step_size_z", "flow.beta_0"} == grads.keys()


class TestPlates:
    """Draws are made equal by noise that depends on the row alone."""

    @pytest.fixture(autouse=True)
    def equal_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def noise(key: Array, shape: tuple[int, ...] = (), dtype: Any = float) -> Array:
            size = math.prod(shape)
            return jnp.sin(1.7 * jnp.arange(size, dtype=dtype) ** 1.3).reshape(shape)

        monkeypatch.setattr(jax.random, "normal", noise)

    def test_the_bound_per_datum_ignores_batch_and_data_size(self) -> None:
        x = programs.data(64)

        def loss_per_row(batch: int, total: int) -> Array:
            index = jnp.arange(batch)

            def model() -> None:
                with numpyro.plate("data", total, subsample_size=batch):
                    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                    loc = programs._decode(z, 3)
                    numpyro.sample(
                        "x", dist.Normal(loc, 0.3).to_event(1), obs=jnp.asarray(x)[index]
                    )

            def guide() -> None:
                with numpyro.plate("data", total, subsample_size=batch):
                    loc, scale = programs._encoder(jnp.asarray(x)[index], 2)
                    numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

            refined = handlers.seed(fixed(5).refine(model, guide), 0)
            trace = handlers.trace(refined).get_trace()
            replayed = handlers.trace(handlers.replay(handlers.seed(model, 0), trace)).get_trace()
            rows = (site["fn"].log_prob(site["value"]) for site in (replayed["z"], replayed["x"]))
            own = trace["z"]
            return sum(rows) - own["fn"].log_prob(own["value"])

        sizes = [(16, 16), (16, 6400), (4, 6400)]
        rows = jax.jit(lambda: [loss_per_row(*size) for size in sizes])()
        np.testing.assert_allclose(rows[1], rows[0], rtol=1e-12)
        np.testing.assert_allclose(rows[2], rows[0][:4], rtol=1e-12)


def subsampled_global(*, in_guide: bool = True) -> Programs:
    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 12, subsample_size=4) as index:
            z = numpyro.sample("z", dist.Normal(theta, 1.0)) if in_guide else theta
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(x)[index, 0])

    def guide(x: Array) -> None:
        numpyro.sample("theta", dist.Normal(0.0, 1.0))
        if in_guide:
            with numpyro.plate("data", 12, subsample_size=4):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def replaced(*, guide: Any) -> Programs:
    return programs.vae()._replace(guide=guide)


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "subsampled in the model": (
        subsampled_global(in_guide=False),
        {},
        "'theta' is outside plate 'data', which is subsampled",
    ),
    "point mass": (
        replaced(guide=AutoDelta(programs.vae().model)),
        {},
        "'z' is a point mass in the guide",
    ),
    "point mass of all latents": (
        replaced(guide=AutoLaplaceApproximation(programs.vae().model)),
        {},
        "'z' is a point mass in the guide",
    ),
    "no site": (programs.vae(), {"sites": []}, "draws no latent that could flow"),
    "observing guide": (
        replaced(guide=programs.vae().model),
        {},
        "the guide observes 'x', as one does that runs the model itself: use an AutoGuide",
    ),
    "sites of step_size": (
        programs.vae(),
        {"step_size": {"w": 0.1}},
        r"step_size of the sites \['z'\]; got \['w'\]",
    ),
    "shape of step_size": (
        programs.vae(),
        {"step_size": np.full(5, 0.1)},
        r"step_size of 'z' to broadcast to \(12, 2\); got shape \(5,\)",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
    def test_programs(self, case: Programs, settings: dict, match: str) -> None:
        with pytest.raises((ValueError, NotImplementedError), match=match):
            evaluate_shapes(fixed(**settings), case)

    def test_a_free_schedule_that_starts_at_no_temperature(self) -> None:
        with pytest.raises(ValueError, match="0 < beta_0 <= 1; got 0"):
            TraceHamiltonian_ELBO(beta_0=0.0, tempering="free")

    def test_a_local_latent_under_a_subsampled_plate_flows(self) -> None:
        evaluate_shapes(fixed(sites=["z"]), subsampled_global())

    @pytest.mark.parametrize("penalised", [False, True])
    def test_parameters_that_nobody_declared(self, penalised: bool) -> None:
        elbo: ELBO = TraceHamiltonian_ELBO()
        with pytest.raises(
            ValueError,
            match=r"parameters of its own, 'hamiltonian.step_size', that svi.init did not declare: "
            r"use numpyro_backend.SVI, or pass elbo.wrap_model\(model\) as the model",
        ):
            evaluate_shapes(TraceMMD_ELBO(base=elbo) if penalised else elbo, programs.vae())

    def test_parameters_of_another_shape(self) -> None:
        elbo = TraceHamiltonian_ELBO(3, per_step=True)
        case = programs.vae()
        params = {"hamiltonian.step_size": jnp.array(0.1), "hamiltonian.beta_0": jnp.array(0.5)}
        with pytest.raises(
            ValueError,
            match=r"'hamiltonian.step_size' of shape \(3,\); the parameters hold one of shape "
            r"\(\): give this objective another name, or initialise",
        ):
            jax.eval_shape(lambda: elbo.loss(jax.random.key(0), params, *case[:2], *case.args))


class TestTightening:
    def test_more_steps_close_the_gap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A normal with correlation 0.9 under a diagonal guide, whose own gap is 0.83 nats.

        The log weight is quadratic in the four standard normals of a draw, so that eight points
        with their second moments give its expectation exactly: no noise hides a gap.
        """
        points = 2 * np.concatenate([np.eye(4), -np.eye(4)])
        tril = np.linalg.cholesky(np.array([[1.0, 0.27], [0.27, 0.09]]))

        def model() -> None:
            with numpyro.plate("points", 8):
                numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))

        def guide() -> None:
            scale = numpyro.param("scale", jnp.ones(2))
            with numpyro.plate("points", 8):
                numpyro.sample("z", dist.Normal(jnp.zeros(2), scale).to_event(1))

        monkeypatch.setattr(jax.random, "normal", lambda key, shape: points[:, :2])
        monkeypatch.setattr(
            "numpyro_backend._traces.refined_guide._standard_normal", lambda u: points[:, 2:]
        )
        scale = np.array([1.0, 0.3]) * math.sqrt(1 - 0.9**2)
        run = jax.random.key(0), {"scale": jnp.array(scale)}, model, guide
        gaps = [float(jax.jit(lambda: Trace_ELBO().loss(*run) / 8)())]
        assert gaps[0] == pytest.approx(-0.5 * math.log(1 - 0.9**2))
        step_size, factors = np.empty((0, 2)), np.empty(0)
        for num_steps in (1, 3, 10):
            more = num_steps - len(factors)
            start = {
                "scale": scale,
                "hamiltonian.step_size": np.concatenate([step_size, np.full((more, 2), 0.3)]),
                "hamiltonian.tempering_factors": np.concatenate([factors, np.full(more, 0.99)]),
            }
            elbo = TraceHamiltonian_ELBO(
                num_steps, np.full((num_steps, 2), 0.3), per_step=True, tempering="free"
            )
            flat, unflatten = ravel_pytree(start)
            best = minimize(
                jax.jit(
                    jax.value_and_grad(
                        lambda flat, elbo=elbo, unflatten=unflatten: (
                            elbo.loss(jax.random.key(0), unflatten(flat), model, guide) / 8
                        )
                    )
                ),
                flat,
                jac=True,
                bounds=[
                    (1e-3, 1 - 1e-9 if "factors" in name else 2.0)
                    for name, value in sorted(start.items())
                    for _ in value.ravel()
                ],
                options={"maxiter": 500},
            )
            gaps.append(float(best.fun))
            end = unflatten(best.x)
            scale, step_size, factors = end["scale"], *(end[name] for name in list(start)[1:])
        assert all(after < before for before, after in itertools.pairwise(gaps))
        assert -1e-9 < gaps[-1] < 0.05 * gaps[0], "a gap below 0 would be no bound"


class TestComposition:
    def test_alpha_leaves_the_trajectory_unchanged(self) -> None:
        """The flow follows the true posterior, whatever the penalised objective weights."""
        case = programs.vae(num=20)
        elbo = TraceHamiltonian_ELBO(4, 0.2)
        params = initial(declared(case, elbo))

        @jax.jit
        def ends_and_losses() -> list[tuple[Array, Array]]:
            steps = []
            for alpha in (0.0, 0.9):
                rows: list[Array] = []

                def keep(group: Rows, rows: list[Array] = rows) -> Array:
                    rows.append(group.values)
                    return group.values.sum() * 0

                objective = TraceMMD_ELBO(alpha, 5.0, base=elbo, regularizer=keep)
                loss = objective.loss(jax.random.key(0), params, *case[:2], *case.args)
                steps.append((rows[0], loss))
            guide_key = jax.random.split(jax.random.key(0))[1]
            refined = handlers.seed(elbo.refine(*case[:2]), guide_key)
            end = handlers.substitute(refined, params)(*case.args)["z"]
            return [*steps, (end, steps[0][1])]

        (first, loss), (second, other), (end, _) = ends_and_losses()
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, end)
        assert loss != other

    def test_gradients_of_a_penalised_objective(self) -> None:
        """Of the flow's parameters too, through the bound and through the rows of the penalty."""
        base = TraceHamiltonian_ELBO(2, 0.2, num_particles=2, vectorize_particles=False)
        grads = assert_gradients(programs.vae(num=6, batch=4), TraceMMD_ELBO(0.3, 5.0, base=base))
        assert {"hamiltonian.step_size", "hamiltonian.beta_0"} < grads.keys()

"""TraceHamiltonian_ELBO on the programs people write: bounds and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import LOOPED, VECTORISED, assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_numpyro, in_pyro, slow_in_numpyro
from tests.objectives.flows import (
    HIERARCHY,
    NEAR,
    X,
    assert_average,
    assert_evidence,
    assert_gradients,
    fixed,
    flow,
    log_normal,
    normal_hierarchy,
    warm,
)
from tests.objectives.programs import hierarchical
from tests.shared_programs import nested, vae


def check(half: Half, case: Case, exact: float) -> None:
    """The bound, and in Pyro, where it takes no compilation, the gradients too."""
    assert_evidence(half, case, exact)
    if not half.compiles:
        assert_gradients(half, case)


@slow_in_numpyro
def test_a_support_that_depends_on_another_latent(half: Half) -> None:
    """b ~ Uniform(0, a): the transform of b moves with a, at every step of the flow."""

    def model() -> None:
        a = half.sample("a", half.dist.Gamma(half.xp.asarray(2.0), 1.0))
        b = half.sample("b", half.dist.Uniform(0.0, a))
        half.sample("x", half.dist.Normal(a + b, 1.0), obs=half.xp.asarray(1.2))

    def guide() -> None:
        shape = half.param("shape", 1.2, constraint=half.dist.constraints.positive)
        a = half.sample("a", half.dist.LogNormal(half.param("loc", 0.1), 0.9))
        fraction = half.dist.Kumaraswamy(shape, shape)
        settings = {"domain": fraction.support} if half.compiles else {}
        stretch = half.dist.transforms.AffineTransform(0.0, a, **settings)
        half.sample("b", half.dist.TransformedDistribution(fraction, [stretch]))

    a = np.linspace(0.0, 25.0, 5001)[1:, None]
    fractions = (np.arange(200) + 0.5) / 200
    likelihood = np.exp(-0.5 * (1.2 - a * (1 + fractions)) ** 2) / math.sqrt(2 * math.pi)
    evidence = math.log((a * np.exp(-a) * likelihood).mean(1).sum() * 0.005)
    check(half, Case(model, guide), evidence)


@slow_in_numpyro
def test_event_dims_of_the_guides_own(half: Half) -> None:
    """A vector in the model, two scalars in the guide: each Jacobian counts once."""
    x = np.array([0.5, -1.0])

    def model() -> None:
        z = half.sample("z", half.dist.LogNormal(half.xp.zeros(2), 1.0).to_event(1))
        normal = half.dist.Normal(half.xp.log(z), 1.0).to_event(1)
        half.sample("x", normal, obs=half.xp.asarray(x))

    def guide() -> None:
        loc = half.xp.asarray(np.array([0.3, -0.4]))
        half.sample("z", half.dist.LogNormal(loc, 0.9))

    # Draw by draw: a plate around the guide's would be taken for the model's event dim.
    losses = half.losses([fixed(half)], Case(model, guide), count=100)[0]
    assert_average(-losses, log_normal(x, 2 * np.eye(2)))


@slow_in_numpyro
def test_latents_in_another_order(half: Half) -> None:
    x = half.xp.asarray(X)

    def model() -> None:
        with half.plate("data", 3):
            a = half.sample("a", half.dist.Normal(0 * x, 1.0))
            b = half.sample("b", half.dist.Normal(a, 1.0))
            half.sample("x", half.dist.Normal(b, 1.0), obs=x)

    def guide() -> None:
        slope = half.param("slope", 0.5)
        with half.plate("data", 3):
            b = half.sample("b", half.dist.Normal(slope * x, 1.0))
            half.sample("a", half.dist.Normal(slope * b, 0.8))

    check(half, Case(model, guide), log_normal(X, 3 * np.eye(3)))


@slow_in_numpyro
def test_factors_and_deterministic_sites(half: Half) -> None:
    x = half.xp.asarray(X)

    def model() -> None:
        with half.plate("data", 3):
            z = half.sample("z", half.dist.Normal(0 * x, 1.0))
            half.deterministic("twice", 2 * z)
            half.deterministic("pair", half.xp.stack([z, z], -1), event_dim=1)
            half.factor("x", half.dist.Normal(z, 1.0).log_prob(x))

    def guide() -> None:
        loc = half.param("loc", np.zeros(3))
        with half.plate("data", 3):
            half.sample("z", half.dist.Normal(loc, 0.9))

    check(half, Case(model, guide), log_normal(X, 2 * np.eye(3)))


def test_an_auxiliary_latent_of_the_users(half: Half) -> None:
    def model() -> None:
        z = half.sample("z", half.dist.Normal(0.0, 1.0))
        half.sample("x", half.dist.Normal(z, 1.0), obs=half.xp.asarray(0.5))

    def guide() -> None:
        w = half.sample("w", half.dist.Normal(0.0, 0.6), infer={"is_auxiliary": True})
        density = half.xp.asarray(-math.log(2))
        half.sample("z", half.dist.Delta(2 * w, log_density=density))

    assert_evidence(half, Case(model, guide), log_normal(X[:1], 2 * np.eye(1)))


@slow_in_numpyro
def test_a_partly_observed_site(half: Half) -> None:
    mask = np.array([True, False, True])

    def model() -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        with half.plate("data", 3):
            data, seen = half.xp.asarray(X), half.xp.asarray(mask)
            half.sample("x", half.dist.Normal(theta, 1.0), obs=data, obs_mask=seen)

    def guide() -> None:
        theta = half.sample("theta", half.dist.Normal(half.param("loc", 0.5), 0.7))
        with half.plate("data", 3), half.mask(~mask):
            half.sample("x_unobserved", half.dist.Normal(theta, 1.1))

    check(half, Case(model, guide), log_normal(X[mask], np.eye(2) + 1))


@in_both("handler", ["condition", "reparam"], quick=[])
def test_effect_handlers_around_the_model(half: Half, handler: str) -> None:
    if handler == "condition":
        hidden = normal_hierarchy(half, is_observed=False)
        program = half.handlers.condition(hidden, data={"x": half.xp.asarray(X)})
    else:
        centred = half.infer.reparam.LocScaleReparam(0.0)
        program = half.handlers.reparam(normal_hierarchy(half), config={"z": centred})
    start = half.init_to(NEAR)
    guide = half.auto("AutoNormal", program, init_scale=0.8, init_loc_fn=start)
    check(half, Case(program, guide), HIERARCHY)


@slow_in_numpyro
def test_a_scale_of_the_users(half: Half) -> None:
    """Annealing of the KL: at a step of 0 the stock ELBO's step."""
    x = half.xp.asarray(X)

    def model() -> None:
        with half.plate("data", 10, index=np.arange(3)):
            with half.scale(0.3):
                z = half.sample("z", half.dist.Normal(0 * x, 1.0))
            half.sample("x", half.dist.Normal(z, 0.5), obs=x)

    def guide() -> None:
        loc = half.param("loc", np.zeros(3))
        with half.plate("data", 10, index=np.arange(3)), half.scale(0.3):
            half.sample("z", half.dist.Normal(loc, 0.8))

    case = Case(model, guide)
    steps = half.steps([fixed(half, 3, 0.0, tempering="none"), half.infer.Trace_ELBO()], case)
    assert_same_step(*steps, own_parameters=set())
    if not half.compiles:
        assert_gradients(half, case)


class TestStacks:
    """Several stacks of plates, and particles."""

    @slow_in_numpyro
    def test_nested_plates_with_masked_items(self, half: Half) -> None:
        """a_j ~ N(0, 1), z_ij ~ N(a_j, 1), x_ij ~ N(z_ij, 1), of which some are missing."""
        x = np.random.default_rng(1).normal(size=(3, 2))
        present = np.array([[True, True], [False, True], [True, False]])
        data = half.xp.asarray(x)

        def model() -> None:
            with half.plate("groups", 2):
                a = half.sample("a", half.dist.Normal(0.0, 1.0))
                with half.plate("items", 3, dim=-2), half.mask(present):
                    z = half.sample("z", half.dist.Normal(a, 1.0))
                    half.sample("x", half.dist.Normal(z, 1.0), obs=data)

        def guide() -> None:
            with half.plate("groups", 2):
                a = half.sample("a", half.dist.Normal(data.mean(0) / 2, 0.8))
                with half.plate("items", 3, dim=-2), half.mask(present):
                    half.sample("z", half.dist.Normal((a + data) / 2, 0.9))

        evidence = sum(
            log_normal(x[rows, j], 2 * np.eye(rows.sum()) + 1) for j, rows in enumerate(present.T)
        )
        assert_evidence(half, Case(model, guide), evidence)

    @in_pyro
    @pytest.mark.slow
    def test_crossed_plates(self, half: Half) -> None:
        x = np.random.default_rng(1).normal(size=(3, 2))

        def model() -> None:
            rows, columns = half.plate("rows", 3, dim=-2), half.plate("columns", 2)
            with rows:
                u = half.sample("u", half.dist.Normal(0.0, 1.0))
            with columns:
                v = half.sample("v", half.dist.Normal(0.0, 1.0))
            with rows, columns:
                half.sample("x", half.dist.Normal(u + v, 1.0), obs=half.xp.asarray(x))

        case = Case(model, half.auto("AutoNormal", model, init_scale=0.6))
        row, column = np.arange(6) // 2, np.arange(6) % 2
        same = (row[:, None] == row) * 1.0 + (column[:, None] == column)
        exact = log_normal(x.reshape(-1), same + np.eye(6))
        elbo = flow(half, beta_0=0.7)
        half.trained(elbo, case, steps=40, lr=0.05)
        assert_evidence(half, case, exact, elbo)
        assert_gradients(half, case, elbo)

    @pytest.mark.parametrize(
        "particles",
        [
            pytest.param(VECTORISED, id="vectorised"),
            pytest.param(LOOPED, id="looped", marks=pytest.mark.slow),
        ],
    )
    @in_pyro
    def test_particles_of_nested_plates(self, half: Half, particles: dict[str, Any]) -> None:
        assert_gradients(half, nested(half), flow(half, **particles))

    @pytest.mark.parametrize("is_tied", [False, True])
    def test_two_plates_subsampled_apart(self, half: Half, is_tied: bool) -> None:
        """Labelled and unlabelled rows: neither latent depends on the other's minibatch."""

        def program(is_model: bool) -> Any:
            def run() -> None:
                theta = half.sample("theta", half.dist.Normal(half.param("loc", 0.5), 1.0))
                for name, size in (("labelled", 10), ("unlabelled", 20)):
                    with half.plate(name, size, batch=5) as index:
                        x = half.xp.asarray(np.linspace(-1.0, 2.0, size))[index]
                        z = half.sample(f"z_{name}", half.dist.Normal(0.3 * x, 1.0))
                        if is_model:
                            half.sample(f"x_{name}", half.dist.Normal(z, 0.5), obs=x)
                            half.factor(f"y_{name}", (1 + 0 * x) * (theta if is_tied else 1.0))

            return run

        case = Case(program(True), program(False))
        if not is_tied:
            half.evaluate(fixed(half), case)
            if not half.compiles:
                assert_gradients(half, case)
            return
        with pytest.raises(ValueError, match="'theta' is outside plate 'labelled'"):
            half.evaluate(fixed(half), case)

    @in_pyro
    @pytest.mark.parametrize("batch", [None, 2])
    def test_a_sequential_plate(self, half: Half, batch: int | None) -> None:
        """With a global latent beside the whole one."""

        def model() -> None:
            theta = half.sample("theta", half.dist.Normal(0.0, 1.0)) if batch is None else 0.0
            for i in half.plate("data", 3, batch=batch, dim=None):
                z = half.sample(f"z_{i}", half.dist.Normal(theta + 0 * X[0], 1.0))
                half.sample(f"x_{i}", half.dist.Normal(z, 1.0), obs=half.xp.asarray(X[i]))

        def guide() -> None:
            loc = half.param("loc", np.zeros(3))
            theta = half.sample("theta", half.dist.Normal(0.0, 0.8)) if batch is None else 0.0
            for i in half.plate("data", 3, batch=batch, dim=None):
                half.sample(f"z_{i}", half.dist.Normal(loc[i] + theta / 2, 0.9))

        if batch is None:
            assert_evidence(half, Case(model, guide), HIERARCHY)
        assert_gradients(half, Case(model, guide))


TEMPERINGS = ["quadratic", "free", "constant", "callable"]
SCHEDULES = [t + per_step for t in TEMPERINGS for per_step in ("", ", per step")]


class TestGradients:
    @in_both("schedule", SCHEDULES, quick=[])
    def test_equal_finite_differences(self, half: Half, schedule: str) -> None:
        tempering, _, per_step = schedule.partition(", ")
        step_size = half.xp.asarray(np.array([[0.1, 0.2]] * 3 if per_step else 0.1))
        given = warm if tempering == "callable" else tempering
        elbo = flow(half, 3, step_size, per_step=bool(per_step), tempering=given)
        x = np.random.default_rng(1).normal(size=(6, 3))
        slopes = assert_gradients(half, vae(half, x=x, batch=4), elbo)
        temperature = "tempering_factors" if tempering == "free" else "beta_0"
        learned = {"hamiltonian.step_size", f"hamiltonian.{temperature}"}
        assert slopes.keys() == {"encoder", "scale", "decoder", "prior_loc"} | learned
        assert all(slope.gradient != 0 for slope in slopes.values())

    @in_both("sizes", ["number", "by site"], quick=[])
    def test_reach_a_latent_that_stays(self, half: Half, sizes: str) -> None:
        """θ is drawn by the guide and conditions the flow of z: its gradient is through both."""
        step_size: Any = 0.2 if sizes == "number" else {"z": 0.2}
        elbo = flow(half, 3, step_size, sites="z", name="flow")
        slopes = assert_gradients(half, hierarchical(half, x=X[:, None] + np.zeros(3)), elbo)
        name = "flow.step_size" if sizes == "number" else "flow.step_size_z"
        assert slopes.keys() == {"theta_loc", "weight", name, "flow.beta_0"}

    @slow_in_numpyro
    def test_of_a_penalised_objective(self, half: Half) -> None:
        """Of the flow's parameters too, through the bound and through the rows of the penalty."""
        base = flow(half, 2, 0.2, num_particles=2, vectorize_particles=False)
        x = np.random.default_rng(1).normal(size=(6, 3))
        elbo = half.library.TraceMMD_ELBO(0.3, 5.0, base=base)
        slopes = assert_gradients(half, vae(half, x=x, batch=4), elbo)
        assert {"hamiltonian.step_size", "hamiltonian.beta_0"} < slopes.keys()

    @slow_in_numpyro
    def test_a_list_of_guides_in_which_one_latent_stays(self, half: Half) -> None:
        model, auto, block = normal_hierarchy(half), half.infer.autoguide, half.handlers.block
        guide = auto.AutoGuideList(model)
        guide.append(auto.AutoDelta(block(model, hide=["z", "x"])))
        guide.append(auto.AutoNormal(block(model, hide=["theta", "x"])))
        case = Case(model, half.prepared(guide))
        slopes = assert_gradients(half, case, flow(half, sites=["z"]))
        assert len(slopes) == 5

    @in_numpyro
    @pytest.mark.slow
    def test_a_step_of_zero_is_the_stock_elbo_over_mapped_particles(self, half: Half) -> None:
        ours, stock = fixed(half, 1, 0.0, tempering="none", **LOOPED), half.infer.Trace_ELBO
        steps = half.steps([ours, stock(**LOOPED)], vae(half))
        assert_same_step(*steps, own_parameters=set())

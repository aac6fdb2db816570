"""The steps that an annealed flow takes, and its loss, against a loop in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.stats import norm

from tests.elbo_suite import assert_same_step
from tests.halves import Case, GivenArrays, Half, NumbersOfShape
from tests.objectives.alone import in_both, slow_in_numpyro
from tests.objectives.flows import X, annealed, assert_gradients, flow, normal_hierarchy
from tests.objectives.programs import hierarchical
from tests.shared_programs import vae

WEIGHT = np.random.default_rng(0).normal(size=(3, 2))
DATA = np.random.default_rng(1).normal(size=(4, 3))
MASK = np.array([True, True, False, True])


def noise(*shape: int) -> np.ndarray:
    return NumbersOfShape().normal(shape)


class Path(NamedTuple):
    """Where steps end, and what the momenta add to the log weight, number by number."""

    end: np.ndarray
    log_ratio: np.ndarray


def annealed_path(
    target: Callable[[np.ndarray], np.ndarray],
    start: Callable[[np.ndarray], np.ndarray],
    u: np.ndarray,
    sizes: Sequence[Any],
    *,
    persistence: float,
    event_dim: int,
) -> Path:
    """Steps of the given sizes along forces, from the momentum and the refreshments given."""
    rho, refreshments = noise(*u.shape), noise(len(sizes) - 1, *u.shape)
    axes, log_ratio = tuple(range(u.ndim - event_dim, u.ndim)), np.zeros_like(u)
    largest = 3 * math.sqrt(math.prod(u.shape[u.ndim - event_dim :]))

    def half_kick(u: np.ndarray, beta: float, size: Any) -> np.ndarray:
        kick = size * (beta * target(u) + (1 - beta) * start(u))
        length = np.sqrt((kick**2).sum(axes, keepdims=True)) if axes else abs(kick)
        return kick * np.minimum(1, largest / np.maximum(length, 1e-300)) / 2

    for k, size in enumerate(sizes, start=1):
        log_ratio += 0.5 * rho**2
        rho = rho + half_kick(u, k / len(sizes), size)
        u = u + size * rho
        rho = rho + half_kick(u, k / len(sizes), size)
        log_ratio -= 0.5 * rho**2
        if k < len(sizes):
            rho = persistence * rho + math.sqrt(1 - persistence**2) * refreshments[k - 1]
    return Path(u, log_ratio)


# The number of data, of rows of the minibatch, the user's scale of the program, the step sizes.
SIZES = np.array([[0.1, 0.2], [0.35, 0.15], [0.2, 0.4]])
TRIALS = {
    "whole": (4, 4, 1.0, SIZES),
    "masked": (100, 4, 1.0, SIZES),
    "subsampled": (6400, 2, 1.0, SIZES),
    "masked, scaled": (100, 4, 0.01, SIZES),
    "with large kicks": (4, 4, 1.0, 8 * SIZES),
    "one step": (4, 4, 1.0, SIZES[:1]),
    "absolute, masked": (100, 4, 1.0, SIZES),
}


@in_both("name", TRIALS, quick=["masked", "with large kicks"])
def test_steps_and_loss_equal_a_loop(half: Half, name: str) -> None:
    """z ~ N(0, I) and x | z ~ N(W z, 0.5), under plates, masks, and a scale that all share."""
    total, rows, scale, sizes = TRIALS[name]
    mask = MASK if "masked" in name else np.ones(4, bool)[:rows]
    x, weight = half.xp.asarray(DATA[:rows]), half.xp.asarray(WEIGHT)
    zeros = half.xp.zeros((rows, 2))

    def model() -> None:
        plate = half.plate("data", total, index=np.arange(rows))
        with half.scale(scale), plate, half.mask(mask):
            z = half.sample("z", half.dist.Normal(zeros, 1.0).to_event(1))
            half.sample("x", half.dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def guide() -> None:
        plate = half.plate("data", total, index=np.arange(rows))
        with half.scale(scale), plate, half.mask(mask):
            half.sample("z", half.dist.Normal(zeros + 0.3, 0.8).to_event(1))

    # A unit of position, in z.
    unit = 1.0 if "absolute" in name else 0.8
    precondition = "none" if "absolute" in name else "guide"
    step_size, case = half.xp.asarray(sizes), Case(model, guide)
    settings = {"persistence": 0.6, "precondition": precondition, "per_step": True}
    elbo = annealed(half, len(sizes), step_size, **settings)
    end = half.draw(elbo.refine(model, guide), case, NumbersOfShape)["z"]
    (step,) = half.steps([elbo], case, draws=NumbersOfShape)

    def target(u: np.ndarray) -> np.ndarray:
        z, data = unit * u, DATA[:rows]
        return unit * (-z + (data - z @ WEIGHT.T) @ WEIGHT / 0.25) * mask[:, None]

    def start(u: np.ndarray) -> np.ndarray:
        return -unit * (unit * u - 0.3) / 0.64 * mask[:, None]

    z_0 = 0.3 + 0.8 * noise(rows, 2)
    # The guide's noise has another origin than its draws.
    shift = 0.0 if "absolute" in name else 0.3 / unit
    path = annealed_path(
        lambda u: target(u + shift),
        lambda u: start(u + shift),
        z_0 / unit - shift,
        sizes,
        persistence=0.6,
        event_dim=1,
    )
    z = unit * (path.end + shift)
    np.testing.assert_allclose(end, z, rtol=1e-10)
    log_weights = (norm.logpdf(z) - norm.logpdf(z_0, 0.3, 0.8) + path.log_ratio).sum(-1)
    log_weights += norm.logpdf(DATA[:rows], z @ WEIGHT.T, 0.5).sum(-1)
    expected = -(log_weights * mask).sum() * total / rows * scale
    assert step.loss == pytest.approx(expected, rel=1e-10)


@in_both("kind", ["LogNormal", "HalfNormal"], quick=["HalfNormal"])
def test_a_constrained_latent(half: Half, kind: str) -> None:
    """rate ~ Gamma(3, 2), x ~ Poisson(rate): ℓ = (3 + x) log(rate) - 3 rate, row by row.

    A half normal's noise does not determine it, so that its coordinate is log(rate), in units of
    its standard deviation to first order: sqrt(π / 2 - 1), whatever the scale.
    """
    x = np.array([4.0, 1.0, 0.0, 2.0])

    def model() -> None:
        with half.plate("data", 4):
            rate = half.sample("rate", half.dist.Gamma(3.0 + half.xp.zeros(4), 2.0))
            half.sample("x", half.dist.Poisson(rate), obs=half.xp.asarray(x))

    loc, scale = np.linspace(-0.5, 0.5, 4), np.linspace(0.5, 1.1, 4)

    def guide() -> None:
        with half.plate("data", 4):
            if kind == "LogNormal":
                fn = half.dist.LogNormal(half.xp.asarray(loc), half.xp.asarray(scale))
            else:
                fn = half.dist.HalfNormal(half.xp.asarray(scale))
            half.sample("rate", fn)

    shift, unit = (loc, scale) if kind == "LogNormal" else (0 * loc, math.sqrt(math.pi / 2 - 1))
    rate_0 = np.exp(loc + scale * noise(4)) if kind == "LogNormal" else abs(scale * noise(4))

    def target(u: np.ndarray) -> np.ndarray:
        return unit * (3 + x - 3 * np.exp(shift + unit * u))

    def start(u: np.ndarray) -> np.ndarray:
        return -u if kind == "LogNormal" else unit * (1 - np.exp(2 * unit * u) / scale**2)

    u_0 = (np.log(rate_0) - shift) / unit
    sizes = [0.3, 0.2, 0.4]
    path = annealed_path(target, start, u_0, sizes, persistence=0.7, event_dim=0)
    elbo = annealed(half, 3, half.xp.asarray(sizes), per_step=True)
    case = Case(model, guide)
    end = half.draw(elbo.refine(model, guide), case, NumbersOfShape)["rate"]
    rate = np.exp(shift + unit * path.end)
    np.testing.assert_allclose(end, rate, rtol=1e-10)
    log_q = norm.logpdf(u_0) - np.log(scale)
    if kind == "HalfNormal":
        log_q = math.log(2) + norm.logpdf(rate_0, 0, scale) + np.log(rate_0)
    log_joint = 3 * math.log(2) - math.log(2) + (3 + x) * np.log(rate) - 3 * rate
    log_joint -= np.array([math.lgamma(count + 1) for count in x])
    (step,) = half.steps([elbo], case, draws=NumbersOfShape)
    assert step.loss == pytest.approx(-(log_joint - log_q + path.log_ratio).sum(), rel=1e-10)


def low_rank(half: Half) -> Case:
    """A guide of two draws of noise for each number: in units of its standard deviations."""

    def model() -> None:
        z = half.sample("z", half.dist.Normal(half.xp.zeros(2), 1.0).to_event(1))
        half.sample("x", half.dist.Normal(z, 0.5).to_event(1), obs=half.xp.asarray(X[:2]))

    def guide() -> None:
        factor = half.xp.asarray(np.array([[0.5], [-0.7]]))
        diagonal = half.xp.asarray(np.array([0.3, 0.1]))
        loc = half.param("loc", np.array([0.2, -0.1]))
        half.sample("z", half.dist.LowRankMultivariateNormal(loc, factor, diagonal))

    return Case(model, guide)


def test_a_guide_of_correlated_noise(half: Half) -> None:
    precision = np.linalg.inv(np.array([[0.55, -0.35], [-0.35, 0.59]]))
    unit, loc = np.sqrt([0.55, 0.59]), np.array([0.2, -0.1])
    z_0 = loc + np.array([0.5, -0.7]) * noise(1) + np.sqrt([0.3, 0.1]) * noise(2)

    def target(u: np.ndarray) -> np.ndarray:
        return unit * (-unit * u + (X[:2] - unit * u) / 0.25)

    def start(u: np.ndarray) -> np.ndarray:
        return -unit * (precision @ (unit * u - loc))

    path = annealed_path(target, start, z_0 / unit, [0.3] * 3, persistence=0.7, event_dim=1)
    case = low_rank(half)
    end = half.draw(annealed(half, 3).refine(*case[:2]), case, NumbersOfShape)["z"]
    np.testing.assert_allclose(end, unit * path.end, rtol=1e-10)


GUIDES = ["one", "dependent", "automatic", "constrained"]


@in_both("kind", GUIDES, quick=["one"])
def test_no_step_is_the_stock_bound(half: Half, kind: str) -> None:
    def guide() -> None:
        theta = half.sample("theta", half.dist.Normal(half.param("loc", 0.2), 0.9))
        with half.plate("data", 3):
            half.sample("z", half.dist.Normal(half.param("slope", 0.4) * theta, 0.7))

    def constrained(is_model: bool) -> Any:
        def run() -> None:
            shape = half.param("shape", 2.0, constraint=half.dist.constraints.positive)
            rate = half.sample("rate", half.dist.Gamma(3.0, 2.0) if is_model else fn(shape))
            if is_model:
                half.sample("x", half.dist.Poisson(rate), obs=half.xp.asarray(4.0))

        fn = half.dist.HalfNormal
        return run

    model = normal_hierarchy(half)
    automatic = half.auto("AutoMultivariateNormal", model) if kind == "automatic" else None
    case = {
        "one": lambda: vae(half, x=DATA),
        "dependent": lambda: Case(model, guide),
        "automatic": lambda: Case(model, automatic),
        "constrained": lambda: Case(constrained(is_model=True), constrained(is_model=False)),
    }[kind]()
    elbos = [annealed(half, 4, 0.0), half.infer.Trace_ELBO()]
    ours, stock = half.steps(elbos, case, draws=NumbersOfShape)
    assert ours.loss == pytest.approx(stock.loss, rel=1e-12)
    assert_same_step(ours, stock, own_parameters=set())


LEARNED = {"hamiltonian.increment_logits", "hamiltonian.persistence"}


class TestGradients:
    """In all that the programs and the flow learn."""

    @in_both("precondition", ["guide", "none"], quick=["guide"])
    def test_equal_finite_differences(self, half: Half, precondition: str) -> None:
        elbo = flow(half, 3, 0.2, path="annealed", precondition=precondition)
        x = np.random.default_rng(1).normal(size=(6, 3))
        slopes = assert_gradients(half, vae(half, x=x, batch=4), elbo)
        step_size = {"hamiltonian.step_size_z"}
        assert slopes.keys() == {"encoder", "scale", "decoder", "prior_loc"} | LEARNED | step_size
        assert all(slope.gradient != 0 for slope in slopes.values())

    @slow_in_numpyro
    def test_of_latents_that_depend_on_each_other(self, half: Half) -> None:
        elbo = flow(half, 3, {"theta": 0.2, "z": 0.3}, path="annealed", max_step_size=0.5)
        slopes = assert_gradients(half, hierarchical(half, x=X[:, None] + np.zeros(3)), elbo)
        sizes = {"hamiltonian.step_size_theta", "hamiltonian.step_size_z"}
        assert sizes | LEARNED < slopes.keys()

    @slow_in_numpyro
    def test_of_a_guide_that_is_not_made_of_noise(self, half: Half) -> None:
        """In its units too, which depend on its parameters."""
        assert_gradients(half, low_rank(half), flow(half, 3, 0.2, path="annealed"))

    @slow_in_numpyro
    def test_of_a_point_mass_made_of_an_auxiliary_site(self, half: Half) -> None:
        model = normal_hierarchy(half)
        guide = half.auto("AutoMultivariateNormal", model)
        assert_gradients(half, Case(model, guide), flow(half, 2, 0.2, path="annealed"))


@slow_in_numpyro
def test_one_temperature_and_one_momentum_is_the_flow_along_the_posterior(half: Half) -> None:
    """One step of it: β = 1."""
    case = vae(half, x=DATA)
    size = {"step_size": 0.2, "learn": False}
    posterior = half.library.TraceHamiltonian_ELBO(1, **size, path="posterior", tempering="none")
    annealing = half.library.TraceHamiltonian_ELBO(1, **size, path="annealed", precondition="none")
    ours, theirs = half.steps([annealing, posterior], case, draws=NumbersOfShape)
    assert_same_step(ours, theirs, own_parameters=set())


class TestRowsThatDiverge:
    """log p(x | z) = sqrt(c - z), and the flow of the first row alone leaves the z below c."""

    ENDS = np.array([0.9, 5.0, 6.0, 7.0])
    NOISE = np.array([1.0, -0.5, 0.3, 1.2]), np.array([2.0, 0.8, -1.0, 0.4])

    def case(self, half: Half, rows: np.ndarray) -> Case:
        ends = half.xp.asarray(self.ENDS[rows])

        def model() -> None:
            with half.plate("data", len(rows)):
                z = half.sample("z", half.dist.Normal(0.0, 1.0))
                half.factor("x", half.xp.sqrt(ends - z))

        def guide() -> None:
            loc = half.param("loc", np.zeros(len(rows)))
            with half.plate("data", len(rows)):
                half.sample("z", half.dist.Normal(loc, 0.8))

        return Case(model, guide)

    def steps(self, half: Half, rows: np.ndarray) -> Any:
        elbo = flow(half, 2, 0.3, path="annealed")
        given = [noise[rows] for noise in (*self.NOISE, self.NOISE[0])]

        def draws() -> GivenArrays:
            return GivenArrays(*given, *given)  # again, where a row diverged

        with half.unvalidated():
            return half.steps([elbo], self.case(half, rows), draws=draws)[0]

    @pytest.mark.filterwarnings("ignore:Encountered NaN")
    @pytest.mark.filterwarnings("ignore:TraceHamiltonian_ELBO. the flow")
    def test_count_by_the_guides_own_draw(self, half: Half) -> None:
        """The rest of the step is that of a minibatch without it; its own is the stock ELBO's."""
        whole, others = (self.steps(half, rows) for rows in (np.arange(4), np.arange(1, 4)))
        z = 0.8
        own = norm.logpdf(1.0) - math.log(0.8) - norm.logpdf(z) - math.sqrt(0.1)
        assert whole.loss - others.loss == pytest.approx(own, rel=1e-9)
        assert whole.grads["loc"][0] == pytest.approx(z + 0.5 / math.sqrt(0.1), rel=1e-9)
        np.testing.assert_allclose(whole.grads["loc"][1:], others.grads["loc"], rtol=1e-9)
        for name in LEARNED | {"hamiltonian.step_size_z"}:
            np.testing.assert_allclose(whole.grads[name], others.grads[name], rtol=1e-9)

    @slow_in_numpyro
    def test_have_weight_0(self, half: Half) -> None:
        """The mean weight is at most the evidence: less what lies behind paths that diverge."""

        def model() -> None:
            z = half.sample("z", half.dist.Normal(0.0, 1.0))
            half.factor("x", half.xp.sqrt(1 - z))

        def guide() -> None:
            half.sample("z", half.dist.Normal(-1.0, 0.4))

        elbo = annealed(half, 8, 0.4, precondition="none")
        log_weights = half.log_weights(elbo, Case(model, guide), draws=20_000)
        assert np.isneginf(log_weights).mean() > 0.01
        assert not np.isnan(log_weights).any()
        grid = np.linspace(-9, 1, 200_001)
        joint = np.exp(norm.logpdf(grid) + np.sqrt(1 - grid))
        ratio = np.exp(log_weights) / (joint.sum() * (grid[1] - grid[0]))
        error = ratio.std() / math.sqrt(len(ratio))
        assert error < 0.015
        assert 0.9 < ratio.mean() < 1 + 4 * error


@slow_in_numpyro
@pytest.mark.filterwarnings("ignore:TraceHamiltonian_ELBO. the guide draws 'z' on the edge")
def test_a_row_on_the_edge_of_its_support(half: Half) -> None:
    """In float32 the logarithm of exp(-60) has a slope whose square overflows."""
    noise = np.array([[0.4, -0.3], [1.0, 0.5], [0.2, 0.6]], np.float32)
    with half.precision(double=False):
        x = half.xp.asarray(np.array([0.0, 3.0], np.float32))

        def model() -> None:
            with half.plate("data", 2):
                z = half.sample("z", half.dist.Gamma(0.5, 1.0 + 0 * x))
                half.sample("x", half.dist.Poisson(z), obs=x)

        def guide() -> None:
            loc = half.param("loc", np.array([-60.0, 0.5], np.float32))
            with half.plate("data", 2):
                half.sample("z", half.dist.LogNormal(loc, 0.5))

        absolute, in_noise = (
            flow(half, 2, 0.2, path="annealed", precondition=unit) for unit in ("none", "guide")
        )
        objectives = [half.infer.Trace_ELBO(), absolute, in_noise]
        steps = half.steps(objectives, Case(model, guide), draws=lambda: GivenArrays(*noise))
    stock, absolute, in_noise = (step.grads["loc"] for step in steps)
    for grads in (absolute, in_noise):
        assert grads[0] == pytest.approx(stock[0], rel=1e-4)
        assert grads[1] != pytest.approx(stock[1], rel=1e-2)
    for step in steps[1:]:
        assert np.isfinite(step.grads["hamiltonian.step_size_z"]).all()
        assert (step.grads["hamiltonian.step_size_z"] != 0).all()

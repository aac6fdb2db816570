"""Simulation-based calibration of linear models, whose posteriors are known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import gammaincc
from scipy.stats import randint

from pyro_infovae._core.calibration import Calibration, chi_square_p_value
from tests.halves import Case
from tests.questions.asking import Asking, data, in_pyro, slow_in_numpyro
from tests.questions.programs import in_plate, two_latents, vae

WEIGHT = np.array([[1.0, 0.5], [-0.3, 1.2], [0.8, 0.7]])
NOISE = 0.6
COVARIANCE = np.linalg.inv(np.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2)
X = 100 * data(150)


def linear(
    half: Asking, *, scale: Any = 1.0, shift: float = 0.0, batch: int | None = None, **plate: Any
) -> Case:
    """x_i ~ N(W z_i, 0.6² I), z_i ~ N(0, I), and the exact posterior, widened and moved.

    The user's own data are a hundred times larger than the model's.
    """
    weight, slope = half.array(WEIGHT.T), half.array(WEIGHT @ COVARIANCE / NOISE**2)
    factor = half.array(scale * np.linalg.cholesky(COVARIANCE))

    def in_own_plate(draw: Callable[[Any], None]) -> Callable[[Any], None]:
        def program(x: Any) -> None:
            in_plate(half, len(x), lambda index: draw(x[index]), batch=batch, **plate)()

        return program

    def model(x: Any) -> None:
        prior = half.dist.Normal(half.xp.zeros_like(x[:, :2]), 1.0)
        z = half.sample("z", prior.to_event(1))
        half.sample("x", half.dist.Normal(z @ weight, NOISE).to_event(1), obs=x)

    def guide(x: Any) -> None:
        half.sample("z", half.dist.MultivariateNormal(x @ slope + shift, scale_tril=factor))

    return Case(in_own_plate(model), in_own_plate(guide))


def calibrate(half: Asking, case: Case, *args: np.ndarray, **settings: Any) -> Calibration[Any]:
    settings = {"num_simulations": 4, "num_samples": 49, **settings}
    arrays = map(half.array, args)
    return half.ask("simulation_based_calibration", case, *arrays, **settings)


def ranks_of(calibration: Calibration[Any]) -> np.ndarray:
    return np.asarray(calibration.ranks)


def assert_uniform(calibration: Calibration[Any]) -> None:
    assert min(calibration.p_values) > 1e-3
    ranks, largest = ranks_of(calibration), calibration.num_samples
    error = math.sqrt(largest * (largest + 2) / 12 / len(ranks))
    assert (abs(ranks.mean(0) - largest / 2) < 4 * error).all()


class TestRanks:
    def test_are_uniform_for_the_exact_posterior(self, half: Asking) -> None:
        calibration = calibrate(half, linear(half), X)
        assert_uniform(calibration)
        ranks = ranks_of(calibration)
        assert ranks.shape == (600, 2)
        assert (ranks.min(), ranks.max()) == (0, 49)
        assert calibration.dimensions == ("z[0]", "z[1]")

    def test_of_a_guide_that_is_too_narrow_and_too_wide(self, half: Asking) -> None:
        """The fifth of the ranks at the ends has more than its share, and less."""
        calibration = calibrate(half, linear(half, scale=np.array([[0.5], [2.0]])), X)
        assert max(calibration.p_values) < 1e-6
        ranks = ranks_of(calibration)
        narrow, wide = ((ranks < 5) | (ranks > 44)).mean(0)
        assert narrow > 0.3
        assert wide < 0.1

    def test_of_a_guide_that_is_too_high(self, half: Asking) -> None:
        calibration = calibrate(half, linear(half, shift=0.3), X)
        assert max(calibration.p_values) < 1e-6
        assert (ranks_of(calibration).mean(0) < 20).all(), "24.5 where uniform"

    @slow_in_numpyro
    def test_masked_rows_have_none(self, half: Asking) -> None:
        calibration = calibrate(half, linear(half, mask=np.arange(150) % 3 != 0), X)
        assert ranks_of(calibration).shape == (400, 2)
        assert_uniform(calibration)

    @slow_in_numpyro
    def test_of_the_named_latents_in_single_precision(self, half: Asking) -> None:
        with half.single_precision():
            case = two_latents(half)
            calibration = calibrate(half, case, sites="z2", data_args=lambda drawn: ((), {}))
        assert calibration.dimensions == ("z2",)

    @in_pyro
    def test_of_a_guide_that_draws_from_the_prior(self, half: Asking) -> None:
        """It passes, as the documentation warns."""
        case = linear(half)
        prior = half.dist.Normal(half.array(np.zeros((150, 2))), 1.0).to_event(1)
        blind = in_plate(half, 150, lambda _: half.sample("z", prior))
        assert_uniform(calibrate(half, case._replace(guide=lambda x: blind()), X))


class TestData:
    @slow_in_numpyro
    def test_of_minibatches(self, half: Asking) -> None:
        """The rows of the minibatch are replaced, and the posterior is exact for them."""
        calibration = calibrate(half, linear(half, batch=100), X, num_simulations=6)
        assert ranks_of(calibration).shape == (600, 2)
        assert_uniform(calibration)

    @slow_in_numpyro
    def test_several_sites_observed(self, half: Asking) -> None:
        """And a deterministic one, which is no data."""

        def model(x: Any, y: Any) -> None:
            with half.plate("data", 150):
                z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
                mean = half.deterministic("mean", 2 * z)
                half.sample("x", half.dist.Normal(mean + 1000, 1.0), obs=x)
                half.sample("y", half.dist.Normal(mean - 1000, 2.0), obs=y)

        def guide(x: Any, y: Any) -> None:
            with half.plate("data", 150):
                loc = (2 * (x - 1000) + (y + 1000) / 2) / 6
                half.sample("z", half.dist.Normal(loc, math.sqrt(1 / 6)))

        assert_uniform(calibrate(half, Case(model, guide), *data(150, 2).T))

    @slow_in_numpyro
    def test_arguments_that_a_function_rebuilds(self, half: Asking) -> None:
        """Sites x_0, x_1 of a loop are columns of the data; exact, and so uniform."""

        def model(x: Any) -> None:
            with half.plate("data", 100):
                z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x[:, 0]), 1.0))
                for t in range(2):
                    half.sample(f"x_{t}", half.dist.Normal(z, 1.0), obs=x[:, t])

        def guide(x: Any) -> None:
            with half.plate("data", 100):
                half.sample("z", half.dist.Normal(x.sum(1) / 3, math.sqrt(1 / 3)))

        case, x = Case(model, guide), np.zeros((100, 2))
        with pytest.raises(ValueError, match=r"what the site 'x_0' observes is none.*data_args"):
            calibrate(half, case, x)

        def data_args(drawn: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (half.xp.stack([drawn["x_0"], drawn["x_1"]], 1),), {}

        assert_uniform(calibrate(half, case, x, data_args=data_args))


def test_the_plot_in_the_documentation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", exc_type=ImportError)
    pytest.importorskip("matplotlib").use("agg")
    calibration = Calibration(np.random.default_rng(0).integers(0, 50, (60, 1)), 49, ("z",))
    uniform = randint(0, calibration.num_samples + 1)
    axes = arviz.plot_ecdf(
        np.asarray(calibration.ranks[:, 0]),
        eval_points=np.arange(calibration.num_samples + 1),
        cdf=uniform.cdf,
        rvs=uniform.rvs,
        confidence_bands=True,
    )
    assert axes.get_lines()


def _with_factor(half: Asking) -> Case:
    case = linear(half)

    def model(x: Any) -> None:
        case.model(x)
        half.factor("penalty", half.array(-1.0))

    return case._replace(model=model)


def _without_data(half: Asking) -> Case:
    def program(x: Any) -> None:
        with half.plate("data", 5):
            half.sample("z", half.dist.Normal(half.array(0.0), 1.0))

    return Case(program, program)


def _observed_twice(half: Asking) -> Case:
    case = linear(half)

    def model(x: Any) -> None:
        case.model(x)
        half.sample("again", half.dist.Normal(half.xp.zeros_like(x), 1.0).to_event(2), obs=x)

    return case._replace(model=model)


REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "simulations": (linear, {"num_simulations": 0}, "num_simulations >= 1 .*num_simulations=0"),
    "samples": (linear, {"num_samples": 1}, "num_samples >= 2; got .*num_samples=1"),
    "factor": (_with_factor, {}, "calibration: the model holds the factor 'penalty'"),
    "no data": (_without_data, {}, "calibration: the model observes nothing"),
    "other data": (
        lambda half: Case(*(lambda _, p=program: p() for program in vae(half)[:2])),
        {},
        "what the site 'x' observes is none of the arguments: pass data_args",
    ),
    "observed twice": (_observed_twice, {}, "what the site 'again' observes is none of the"),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(half: Asking, case: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        calibrate(half, case(half), X, **settings)


class TestPValues:
    def test_too_few_ranks(self) -> None:
        with pytest.raises(ValueError, match=r"15 ranks.*got 10 of 50: use more simulations$"):
            _ = Calibration(np.zeros((10, 1), int), 49, ("z",)).p_values

    def test_are_those_of_chi_square(self) -> None:
        """500 ranks 0, ..., 104 in 21 bins of 5 ranks each."""
        ranks = np.random.default_rng(0).integers(0, 105, size=500) ** 2 // 104
        counts = np.bincount(ranks // 5, minlength=21)
        statistic = float((np.square(counts - 500 / 21) / (500 / 21)).sum())
        expected = gammaincc(10.0, statistic / 2)
        assert chi_square_p_value(ranks, 105) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize(
        ("num_ranks", "size"), [(3, 15), (4, 40), (10, 40), (20, 100), (100, 1000)]
    )
    def test_are_uniform_where_the_ranks_are(self, num_ranks: int, size: int) -> None:
        """Also where the bins cannot be of equal size."""
        rng = np.random.default_rng(0)
        p_values = np.array(
            [chi_square_p_value(rng.integers(0, num_ranks, size), num_ranks) for _ in range(2000)]
        )
        for level in (0.05, 0.5):
            error = math.sqrt(level * (1 - level) / 2000)
            # The statistic of few counts is discrete.
            tolerance = 4 * error + (0.05 if size < 100 else 0.01)
            assert np.mean(p_values <= level) == pytest.approx(level, abs=tolerance)

    def test_find_ranks_at_the_ends_and_in_the_middle(self) -> None:
        rng = np.random.default_rng(0)
        ends = rng.choice([0, 1, 98, 99], size=200)
        middle = rng.integers(30, 70, size=200)
        assert max(chi_square_p_value(ends, 100), chi_square_p_value(middle, 100)) < 1e-10

    @pytest.mark.parametrize(
        ("size", "num_ranks", "more"),
        [(14, 10, "simulations"), (100, 2, "samples"), (14, 2, "simulations and samples")],
    )
    def test_refuse_too_few(self, size: int, num_ranks: int, more: str) -> None:
        match = f"at least 15 ranks.*got {size} of {num_ranks}: use more {more}$"
        with pytest.raises(ValueError, match=match):
            chi_square_p_value(np.zeros(size, dtype=int), num_ranks)

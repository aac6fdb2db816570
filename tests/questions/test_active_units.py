"""Active units against the variance of posterior means that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyro_infovae._core.dimensions import ask_active_units
from tests.halves import Case
from tests.questions.asking import Asking, data, slow_in_numpyro
from tests.questions.programs import WEIGHT, in_plate, pair, two_latents, vae
from tests.questions.runs import runs_of_arrays

LOCS = np.array([-2.0, -0.5, 0.3, 0.9, 3.0])
VARIANCE = LOCS.var(ddof=1)


def with_conditional(
    half: Asking, conditional: Callable[..., Any], locs: np.ndarray = LOCS
) -> Case:
    """q(z | x_i) is a conditional of a location with two features, of which one ignores x."""
    loc = half.array(np.stack([locs, np.ones_like(locs)], -1))
    prior = half.dist.Normal(half.array(np.zeros(2)), 1.0).to_event(1)
    return pair(half, conditional(half, loc), prior, num=len(locs))


KNOWN: dict[str, Callable[..., Any]] = {
    "normal": lambda half, loc: half.dist.Normal(loc, 2.0).to_event(1),
    "point mass": lambda half, loc: half.dist.Delta(loc, event_dim=1),
}
DRAWN: dict[str, Callable[..., Any]] = {
    "laplace": lambda half, loc: half.dist.Laplace(loc, 1.0).to_event(1),
    "multivariate normal": lambda half, loc: half.dist.MultivariateNormal(
        loc, half.array(2 * np.eye(2))
    ),
}


def known_errors(locs: np.ndarray, noise: float, *, num_samples: int) -> tuple[Any, Any]:
    """The variance of the means, and its standard error, from draws of the given variance."""
    expected = np.array([locs.var(ddof=1), 0.0])
    of_a_draw = noise * expected / (len(locs) - 1)
    of_a_pair = 2 * of_a_draw + noise**2 / (len(locs) - 1)
    pairs = num_samples * (num_samples - 1)
    return expected, np.sqrt((4 * (num_samples - 2) * of_a_draw + 2 * of_a_pair) / pairs)


class TestKnownMeans:
    @pytest.mark.parametrize("conditional", KNOWN.values(), ids=KNOWN)
    def test_the_variance_of_the_guides_own_means(self, half: Asking, conditional: Any) -> None:
        units = half.ask("active_units", with_conditional(half, conditional))
        np.testing.assert_allclose(units.variance, [VARIANCE, 0.0], rtol=1e-12, atol=1e-12)
        assert not units.standard_error.any()
        assert units.active.tolist() == [True, False]
        assert (units.num_active, units.num_data) == (1, 5)
        assert units.dimensions == ("z[0]", "z[1]")

    @slow_in_numpyro
    def test_of_minibatches_in_single_precision(self, half: Asking) -> None:
        with half.single_precision():
            units = half.ask("active_units", vae(half, batch=5))
            assert "float32" in str(units.variance.dtype)
            expected = (data() @ WEIGHT).var(0, ddof=1)
            np.testing.assert_allclose(units.variance, expected, rtol=1e-5)

    def test_of_the_exact_posterior_of_a_linear_model(self, half: Asking) -> None:
        """z ~ N(0, 1), x ~ N(2 z, 1): E[z | x] = 0.4 x, whose variance is 0.8."""
        x = half.array(math.sqrt(5.0) * data(20_000, 1)[:, 0])

        def model(_: Any) -> None:
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
            half.sample("x", half.dist.Normal(2 * z, 1.0), obs=x)

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(0.4 * x, math.sqrt(0.2)))

        case = Case(*(in_plate(half, 20_000, draw) for draw in (model, guide)))
        units = half.ask("active_units", case)
        assert float(units.variance[0]) == pytest.approx(0.8, abs=4 * 0.8 * math.sqrt(2 / 20_000))

    def test_masked_data_do_not_count(self, half: Asking) -> None:
        mask = np.array([True, True, False, True, False])
        case = with_conditional(half, KNOWN["normal"])
        units = half.ask(
            "active_units", Case(*(half.masked(program, mask) for program in case[:2]))
        )
        assert float(units.variance[0]) == pytest.approx(LOCS[mask].var(ddof=1))
        assert units.num_data == 3

    def test_what_all_data_share_cancels(self, half: Asking) -> None:
        """z_i ~ N(θ + x_i, 1), θ drawn anew in every run: exactly the variance of x."""
        x = half.array(LOCS)

        def program(x: Any, spread: float) -> Any:
            def run() -> None:
                theta = half.sample("theta", half.dist.Normal(half.array(0.0), spread))
                with half.plate("data", 5):
                    half.sample("z", half.dist.Normal(theta * (x != 0) + x, 1.0))

            return run

        case = Case(program(half.xp.zeros_like(x), 1.0), program(x, 10.0))
        units = half.ask("active_units", case, num_samples=4)
        assert float(units.variance[0]) == pytest.approx(VARIANCE, rel=1e-10)


class TestDrawnMeans:
    def test_is_unbiased_and_knows_its_error(self) -> None:
        """The variance of the mean of 5 draws is at least 1/5, even where it ignores x."""
        rng = np.random.default_rng(0)
        runs = runs_of_arrays(5, lambda: np.stack([LOCS, 0 * LOCS], -1) + rng.normal(size=(5, 2)))
        reports = [
            ask_active_units(runs, None, range(5), num_samples=5, threshold=0.01)
            for _ in range(1000)
        ]
        estimates = np.stack([report.variance for report in reports])
        error = estimates.std(0, ddof=1) / math.sqrt(1000)
        assert (abs(estimates.mean(0) - [VARIANCE, 0.0]) < 4 * error).all()
        assert 4 * error[1] < 1 / 5, "too few runs to tell"
        squares = np.stack([report.standard_error for report in reports]) ** 2
        ratio = np.sqrt(squares.mean(0)) / estimates.std(0, ddof=1)
        assert ((ratio > 0.75) & (ratio < 1.6)).all(), ratio

    @pytest.mark.parametrize(
        ("half", "name"),
        [
            ("pyro", "laplace"),
            pytest.param("numpyro", "multivariate normal", marks=pytest.mark.slow),
        ],
        indirect=["half"],
    )
    def test_knows_its_error(self, half: Asking, name: str) -> None:
        """The variance of the mean of 20 draws is far from 0, even where it ignores x."""
        locs = data(1000, 1)[:, 0]
        expected, error = known_errors(locs, noise=2.0, num_samples=20)
        assert (4 * error < 2 / 20).all(), "too few data to tell"
        units = half.ask("active_units", with_conditional(half, DRAWN[name], locs), num_samples=20)
        np.testing.assert_allclose(units.standard_error, error, rtol=0.35)
        assert (abs(np.asarray(units.variance) - expected) < 4 * error).all()

    def test_a_latent_that_depends_on_another(self, half: Asking) -> None:
        """z2 | z1 ~ N(2 z1, .), z1 ~ N(0, 1): a location that is random, with a mean of 0."""
        units = half.ask("active_units", two_latents(half, num=200), num_samples=30)
        assert units.variance[0] == 0, "its mean is known to be 0"
        assert 0 < units.standard_error[1] < 0.05
        assert abs(units.variance[1]) < 4 * units.standard_error[1]

    @pytest.mark.parametrize(
        ("half", "automatic"),
        [("pyro", True), pytest.param("numpyro", False, marks=pytest.mark.slow)],
        indirect=["half"],
    )
    def test_the_mean_is_that_of_the_latent_itself(self, half: Asking, automatic: bool) -> None:
        """A normal seen through exp: E[z] = exp(m + s² / 2), not m."""
        loc = half.array(LOCS / 2)
        case = pair(
            half,
            half.dist.LogNormal(loc, 0.5),
            half.dist.LogNormal(half.xp.zeros_like(loc), 1.0),
            num=5,
        )
        params = None
        if automatic:
            case, params = half.auto_normal(case.model, LOCS / 2, np.full(5, 0.5))
        units = half.ask("active_units", case, params=params, num_samples=300)
        expected = np.exp(LOCS / 2 + 0.125).var(ddof=1)
        assert 0 < units.standard_error[0] < 0.1 * expected
        assert abs(units.variance[0] - expected) < 4 * units.standard_error[0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"threshold": -0.1}, "threshold >= 0; got -0.1"),
        ({"threshold": math.nan}, "threshold >= 0; got nan"),
        ({"num_samples": 3}, "num_samples >= 4; got 3"),
    ],
)
def test_refuses(half: Asking, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        half.ask("active_units", vae(half), **settings)

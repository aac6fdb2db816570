"""KL by datum and dimension against closed forms and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyro_infovae._core.dimensions import KLByDimension, ask_kl_by_dimension
from tests.halves import Case
from tests.questions.asking import Asking, data, in_pyro, slow_in_numpyro
from tests.questions.programs import WEIGHT, in_plate, pair, two_latents, vae
from tests.questions.runs import runs_of_arrays

LOCS = np.array([[-2.0, 0.1], [-0.5, 0.0], [0.3, 0.4], [3.0, -0.2]])
SCALES = np.array([[0.3, 1.1], [0.6, 0.9], [1.5, 1.0], [0.5, 0.7]])


def kl_to_standard_normal(loc: np.ndarray, scale: Any) -> np.ndarray:
    return 0.5 * (scale**2 + loc**2 - 1) - np.log(scale)


def assert_agree(
    report: KLByDimension[Any], per_datum: np.ndarray, *, largest_error: float
) -> None:
    error = np.asarray(report.standard_error)
    assert (error < largest_error).all(), "too few draws to tell"
    assert (error > 0).all()
    assert (abs(np.asarray(report.per_datum) - per_datum) < 4 * error).all()


class TestClosedForm:
    def test_of_normals(self, half: Asking) -> None:
        prior = half.dist.Normal(half.array([0.5, 0.5]), 1.5).to_event(1)
        posterior = half.dist.Normal(half.array(LOCS), half.array(SCALES)).to_event(1)
        report = half.ask("kl_by_dimension", pair(half, posterior, prior))
        expected = np.log(1.5 / SCALES) + (SCALES**2 + (LOCS - 0.5) ** 2) / (2 * 1.5**2) - 0.5
        np.testing.assert_allclose(report.terms, expected, rtol=1e-12)
        np.testing.assert_allclose(report.per_datum, expected.sum(1))
        np.testing.assert_allclose(report.per_dimension, expected.mean(0))
        assert report.mean == pytest.approx(expected.sum() / 4)
        assert report.mean_error == 0
        assert not report.standard_error.any()
        assert report.dimensions == ("z[0]", "z[1]")
        assert report.datum.tolist() == [0, 1, 2, 3]
        assert not report.unsplit

    def test_of_minibatches_in_single_precision(self, half: Asking) -> None:
        with half.single_precision():
            report = half.ask("kl_by_dimension", vae(half, batch=5))
            assert "float32" in str(report.terms.dtype)
            expected = kl_to_standard_normal(data() @ WEIGHT, 0.4)
            np.testing.assert_allclose(report.terms, expected, rtol=1e-4)

    def test_masked_data_are_left_out(self, half: Asking) -> None:
        report = half.ask("kl_by_dimension", vae(half, mask=np.arange(12) % 3 != 0))
        kept = [1, 2, 4, 5, 7, 8, 10, 11]
        assert report.datum.tolist() == kept
        expected = kl_to_standard_normal(data() @ WEIGHT, 0.4)
        np.testing.assert_allclose(report.terms, expected[kept])

    @slow_in_numpyro
    def test_of_an_auto_guide(self, half: Asking) -> None:
        prior = half.dist.Normal(half.array([0.0, 0.0]), 1.0).to_event(1)
        model = in_plate(half, 4, lambda _: half.sample("z", prior))
        case, params = half.auto_normal(model, LOCS, SCALES)
        report = half.ask("kl_by_dimension", case, params=params)
        np.testing.assert_allclose(report.terms, kl_to_standard_normal(LOCS, SCALES))


class TestSampled:
    def test_by_dimension(self, half: Asking) -> None:
        """Each feature is positive by itself: KL(LogNormal ‖ LogNormal) is that of the normals."""
        prior = half.dist.LogNormal(half.array([0.0, 0.0]), 1.0).to_event(1)
        posterior = half.dist.LogNormal(half.array(LOCS), half.array(SCALES)).to_event(1)
        report = half.ask("kl_by_dimension", pair(half, posterior, prior), num_samples=200)
        expected = kl_to_standard_normal(LOCS, SCALES)
        assert_agree(report, expected.sum(1), largest_error=0.3)
        errors = 4 * np.asarray(report.standard_error)[:, None]
        assert (abs(np.asarray(report.terms) - expected) < errors).all()
        np.testing.assert_allclose(report.terms.sum(1), report.per_datum)
        assert not report.unsplit

    @slow_in_numpyro
    def test_a_latent_that_splits_beside_one_that_does_not(self, half: Asking) -> None:
        """The terms of the first are known, and the sum of both: 2 and 1 nats."""
        zeros, ones = half.array(np.zeros(2)), half.array(np.ones(2))

        def program(loc: float, second: Any) -> Any:
            def draw(_: Any) -> None:
                half.sample("a", half.dist.Normal(half.array(loc), 1.0))
                half.sample("b", second)

            return in_plate(half, 4, draw)

        prior = half.dist.Normal(zeros, 1.0).to_event(1)
        joint = half.dist.MultivariateNormal(ones, half.array(np.eye(2)))
        case = Case(program(0.0, prior), program(2.0, joint))
        report = half.ask("kl_by_dimension", case, num_samples=200)
        assert report.dimensions == ("a", "b[0]", "b[1]")
        np.testing.assert_allclose(report.terms[:, 0], 2.0)
        assert np.isnan(np.asarray(report.terms[:, 1:])).all()
        assert report.unsplit == {
            "b": "the density of MultivariateNormal does not split by dimension"
        }
        assert_agree(report, np.full(4, 3.0), largest_error=0.3)

    @slow_in_numpyro
    def test_standard_errors_are_the_spread_of_the_terms(self, half: Asking) -> None:
        """The variance of log q - log p under q = N(m, 1), p = N(0, 1) is m²."""
        locs = LOCS[:, 0]
        prior = half.dist.StudentT(half.array(1e9), 0.0, 1.0)
        case = pair(half, half.dist.Normal(half.array(locs), 1.0), prior)
        report = half.ask("kl_by_dimension", case, num_samples=400)
        expected = abs(locs) / math.sqrt(400)
        np.testing.assert_allclose(report.standard_error, expected, rtol=4 / math.sqrt(800))
        error = np.linalg.norm(expected) / 4
        assert report.mean_error == pytest.approx(error, rel=0.1)
        assert report.mean == pytest.approx((locs**2 / 2).mean(), abs=4 * error)

    def test_standard_errors_are_the_spread_over_seeds(self) -> None:
        rng = np.random.default_rng(0)
        runs = runs_of_arrays(4, lambda: rng.laplace(size=(4, 3)))
        reports = [
            ask_kl_by_dimension(runs, None, range(8), num_samples=8, unsplit={})
            for _ in range(1000)
        ]
        spread = np.std([report.mean for report in reports])
        claimed = math.sqrt(np.mean([report.mean_error**2 for report in reports]))
        assert claimed / spread == pytest.approx(1.0, abs=4 / math.sqrt(1000))


class TestSeveralLatents:
    @slow_in_numpyro
    def test_conditionals_given_one_another(self, half: Asking) -> None:
        """q is the prior, factor by factor: 0, though the second's location is random."""
        assert not half.ask("kl_by_dimension", two_latents(half)).terms.any()

    @slow_in_numpyro
    def test_drawn_in_another_order(self, half: Asking) -> None:
        """q(b) q(a | b) is p(a) p(b | a): the joint ratio is 1, the conditionals are not equal."""
        zero = half.array(0.0)

        def model(_: Any) -> None:
            a = half.sample("a", half.dist.Normal(zero, 1.0))
            half.sample("b", half.dist.Normal(a, 1.0))

        def guide(_: Any) -> None:
            b = half.sample("b", half.dist.Normal(zero, math.sqrt(2.0)))
            half.sample("a", half.dist.Normal(b / 2, math.sqrt(0.5)))

        case = Case(*(in_plate(half, 4, draw) for draw in (model, guide)))
        report = half.ask("kl_by_dimension", case)
        np.testing.assert_allclose(report.per_datum, 0, atol=1e-12)
        assert abs(report.terms).max() > 0.1

    @in_pyro
    def test_the_average_is_that_of_aggregated_posterior(self, half: Asking) -> None:
        case = vae(half, num=30)
        other = half.ask("aggregated_posterior", case, num_samples=100)
        assert abs(half.ask("kl_by_dimension", case).mean - other.kl) < 4 * other.kl_error


def _not_drawn(half: Asking) -> Case:
    def model(_: Any) -> None:
        y = half.sample("y", half.dist.Bernoulli(half.array(0.5)))
        half.sample("z", half.dist.Normal(y, 1.0))

    normal = half.dist.Normal(half.array(0.0), 1.0)
    return pair(half, normal, normal)._replace(model=in_plate(half, 4, model))


def _point_mass(half: Asking) -> Case:
    loc = half.array(LOCS[:, 0])
    return pair(half, half.dist.Delta(loc), half.dist.Normal(half.xp.zeros_like(loc), 1.0))


REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "one draw": (vae, {"num_samples": 1}, "num_samples >= 2; got 1"),
    "not drawn": (
        _not_drawn,
        {"sites": "z"},
        r"the guide does not draw 'y', on which the prior of \['z'\] may depend",
    ),
    "point mass": (
        _point_mass,
        {},
        "kl_by_dimension: the guide draws 'z' as a point mass, which has no density",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(half: Asking, case: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        half.ask("kl_by_dimension", case(half), **settings)

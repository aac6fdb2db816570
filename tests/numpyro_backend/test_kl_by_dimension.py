"""KL by datum and dimension against closed forms and quadrature."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoNormal

from numpyro_backend._diagnostics.kl_by_dimension import KLByDimension, kl_by_dimension
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

LOCS = np.array([[-2.0, 0.1], [-0.5, 0.0], [0.3, 0.4], [3.0, -0.2]])
SCALES = np.array([[0.3, 1.1], [0.6, 0.9], [1.5, 1.0], [0.5, 0.7]])


def pair(posterior: Any, prior: Any) -> Programs:
    """q(z | x_i) and p(z) of 4 data."""

    def program(fn: Any) -> Any:
        def run() -> None:
            with numpyro.plate("data", 4):
                numpyro.sample("z", fn)

        return run

    return Programs(program(prior), program(posterior), ())


def run(
    case: Programs, *, params: dict[str, Any] | None = None, seed: int = 0, **settings: Any
) -> KLByDimension:
    key = jax.random.key(seed)
    return kl_by_dimension(key, params or {}, case.model, case.guide, *case.args, **settings)


def kl_to_standard_normal(loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return 0.5 * (scale**2 + loc**2 - 1) - np.log(scale)


def assert_agree(report: KLByDimension, per_datum: np.ndarray, *, largest_error: float) -> None:
    assert (report.standard_error < largest_error).all(), "too few draws to tell"
    assert (report.standard_error > 0).all()
    assert (abs(report.per_datum - per_datum) < 4 * report.standard_error).all()


class TestClosedForm:
    def test_of_normals(self) -> None:
        prior = dist.Normal(np.full(2, 0.5), 1.5).to_event(1)
        report = run(pair(dist.Normal(LOCS, SCALES).to_event(1), prior))
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

    def test_of_minibatches_in_single_precision(self) -> None:
        with jax.enable_x64(False):
            case = programs.vae(batch=5)
            weight = np.random.default_rng(2).normal(size=(3, 2))
            report = run(case, params={"encoder": weight, "scale": np.array([0.3, 0.9])})
            assert report.terms.dtype == np.float32
            expected = kl_to_standard_normal(case.args[0] @ weight, np.array([0.3, 0.9]))
            np.testing.assert_allclose(report.terms, expected, rtol=1e-4)

    def test_masked_data_are_left_out(self) -> None:
        case = programs.masked_vae()
        weight = np.random.default_rng(2).normal(size=(3, 2))
        report = run(case, params={"encoder": weight, "scale": np.ones(2)})
        assert report.datum.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
        expected = kl_to_standard_normal(case.args[0] @ weight, np.ones(2))
        np.testing.assert_allclose(report.terms, expected[report.datum])

    def test_of_an_auto_guide(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 4):
                numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

        params = {"z_auto_loc": LOCS, "z_auto_scale": SCALES}
        report = run(Programs(model, AutoNormal(model), ()), params=params)
        np.testing.assert_allclose(report.terms, kl_to_standard_normal(LOCS, SCALES))


class TestSampled:
    def test_a_latent_that_splits_beside_one_that_does_not(self) -> None:
        """The terms of the first are known, and the sum of both: 2 and 1 nats."""

        def model() -> None:
            with numpyro.plate("data", 4):
                numpyro.sample("a", dist.Normal(0.0, 1.0))
                numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

        def guide() -> None:
            with numpyro.plate("data", 4):
                numpyro.sample("a", dist.Normal(2.0, 1.0))
                numpyro.sample("b", dist.MultivariateNormal(jnp.ones(2), jnp.eye(2)))

        report = run(Programs(model, guide, ()), num_samples=200)
        assert report.dimensions == ("a", "b[0]", "b[1]")
        np.testing.assert_allclose(report.terms[:, 0], 2.0)
        assert np.isnan(report.terms[:, 1:]).all()
        assert report.unsplit == {
            "b": "the density of MultivariateNormal does not split by dimension"
        }
        assert_agree(report, np.full(4, 3.0), largest_error=0.3)

    @pytest.mark.parametrize("num_features", [1, 2])
    def test_a_transform_of_all_features(self, num_features: int) -> None:
        """KL(LogNormal ‖ LogNormal) is that of the normals; a single feature is all there is."""
        locs, scales = LOCS[:, :num_features], SCALES[:, :num_features]

        def positive(loc: np.ndarray, scale: np.ndarray) -> Any:
            normal = dist.Normal(loc, scale).to_event(1)
            return dist.TransformedDistribution(normal, dist.transforms.ExpTransform())

        prior = positive(np.zeros(num_features), np.ones(num_features))
        report = run(pair(positive(locs, scales), prior), num_samples=200)
        assert_agree(report, kl_to_standard_normal(locs, scales).sum(1), largest_error=0.3)
        reasons = ["the density of TransformedDistribution does not split by dimension"]
        assert list(report.unsplit.values()) == reasons * (num_features - 1)
        split = report.per_datum if num_features == 1 else np.full(4, np.nan)
        np.testing.assert_allclose(report.terms[:, 0], split)

    def test_by_dimension(self) -> None:
        """Each feature is positive by itself: KL(LogNormal ‖ LogNormal) is that of the normals."""
        prior = dist.LogNormal(np.zeros(2), 1.0).to_event(1)
        report = run(pair(dist.LogNormal(LOCS, SCALES).to_event(1), prior), num_samples=200)
        expected = kl_to_standard_normal(LOCS, SCALES)
        assert_agree(report, expected.sum(1), largest_error=0.3)
        assert (abs(report.terms - expected) < 4 * report.standard_error[:, None]).all()
        np.testing.assert_allclose(report.terms.sum(1), report.per_datum)

    def test_standard_errors_are_the_spread_of_the_terms(self) -> None:
        """The variance of log q - log p under q = N(m, 1), p = N(0, 1) is m²."""
        case = pair(dist.Normal(LOCS[:, 0], 1.0), dist.StudentT(1e9, 0.0, 1.0))
        report = run(case, num_samples=400)
        expected = abs(LOCS[:, 0]) / math.sqrt(400)
        np.testing.assert_allclose(report.standard_error, expected, rtol=4 / math.sqrt(800))
        error = np.linalg.norm(expected) / 4
        assert report.mean_error == pytest.approx(error, rel=0.1)
        assert report.mean == pytest.approx((LOCS[:, 0] ** 2 / 2).mean(), abs=4 * error)


class TestSeveralLatents:
    def test_conditionals_given_one_another(self) -> None:
        """q is the prior, factor by factor: 0, though the second's location is random."""
        assert not run(programs.two_latents(exact=True)).terms.any()

    def test_drawn_in_another_order(self) -> None:
        """q(b) q(a | b) is p(a) p(b | a): the joint ratio is 1, the conditionals are not equal."""

        def model() -> None:
            with numpyro.plate("data", 4):
                a = numpyro.sample("a", dist.Normal(0.0, 1.0))
                numpyro.sample("b", dist.Normal(a, 1.0))

        def guide() -> None:
            with numpyro.plate("data", 4):
                b = numpyro.sample("b", dist.Normal(0.0, math.sqrt(2.0)))
                numpyro.sample("a", dist.Normal(b / 2, math.sqrt(0.5)))

        report = run(Programs(model, guide, ()))
        np.testing.assert_allclose(report.per_datum, 0, atol=1e-12)
        assert abs(report.terms).max() > 0.1


def _not_drawn() -> Programs:
    case = pair(dist.Normal(0.0, 1.0), None)

    def model() -> None:
        with numpyro.plate("data", 4):
            y = numpyro.sample("y", dist.Bernoulli(0.5))
            numpyro.sample("z", dist.Normal(y, 1.0))

    return case._replace(model=model)


def _all_data_at_once() -> Programs:
    case = pair(None, dist.Normal(0.0, 1.0))
    return case._replace(
        guide=lambda: numpyro.sample("z", dist.Normal(LOCS[:, 0], 1.0).to_event(1))
    )


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "one draw": (programs.vae(), {"num_samples": 1}, "num_samples >= 2; got 1"),
    "not drawn": (
        _not_drawn(),
        {},
        r"the guide does not draw 'y', on which the prior of \['z'\] may depend",
    ),
    "point mass": (
        pair(dist.Delta(LOCS[:, 0]), dist.Normal(0.0, 1.0)),
        {},
        "kl_by_dimension: the guide draws 'z' as a point mass, which has no density",
    ),
    "all data at once": (
        _all_data_at_once(),
        {"sites": "z"},
        r"the guide to draw 'z' with batch shape \(4,\), as the model does; got \(\)",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(case, **settings)

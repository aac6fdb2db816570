"""Active units against the variance of posterior means that are known."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend._diagnostics.active_units import ActiveUnits, active_units
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

LOCS = np.array([-2.0, -0.5, 0.3, 0.9, 3.0])


def run(case: Programs, *, params: dict[str, Any] | None = None, **settings: Any) -> ActiveUnits:
    key = jax.random.key(0)
    return active_units(key, params or {}, case.model, case.guide, *case.args, **settings)


def with_conditional(conditional: Any, locs: np.ndarray = LOCS) -> Programs:
    """q(z | x_i) is a conditional of a location with two features, of which one ignores x."""

    def model() -> None:
        with numpyro.plate("data", len(locs)):
            numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        with numpyro.plate("data", len(locs)):
            numpyro.sample("z", conditional(jnp.stack([locs, jnp.ones_like(locs)], -1)))

    return Programs(model, guide, ())


KNOWN = {
    "normal": lambda loc: dist.Normal(loc, 2.0).to_event(1),
    "point mass": lambda loc: dist.Delta(loc, event_dim=1),
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
    def test_the_variance_of_the_guides_own_means(self, conditional: Any) -> None:
        units = run(with_conditional(conditional))
        expected = [LOCS.var(ddof=1), 0.0]
        np.testing.assert_allclose(units.variance, expected, rtol=1e-12, atol=1e-12)
        assert not units.standard_error.any()
        assert units.active.tolist() == [True, False]
        assert (units.num_active, units.num_data) == (1, 5)
        assert units.dimensions == ("z[0]", "z[1]")

    @pytest.mark.parametrize(("batch", "x64"), [(None, True), (5, False)])
    def test_of_minibatches(self, batch: int | None, x64: bool) -> None:
        with jax.enable_x64(x64):
            case = programs.vae(batch=batch)
            weight = np.random.default_rng(2).normal(size=(3, 2))
            units = run(case, params={"encoder": weight})
            assert units.variance.dtype == (np.float64 if x64 else np.float32)
            expected = (case.args[0] @ weight).var(0, ddof=1)
            np.testing.assert_allclose(units.variance, expected, rtol=1e-12 if x64 else 1e-5)

    def test_of_the_exact_posterior_of_a_linear_model(self) -> None:
        """z ~ N(0, 1), x ~ N(2 z, 1): E[z | x] = 0.4 x, whose variance is 0.8."""
        x = math.sqrt(5.0) * programs.data(20_000, 1)[:, 0]

        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(0.4 * x, math.sqrt(0.2)))

        units = run(Programs(model, guide, (x,)))
        assert float(units.variance[0]) == pytest.approx(0.8, abs=4 * 0.8 * math.sqrt(2 / 20_000))

    def test_masked_data_do_not_count(self) -> None:
        mask = np.array([True, True, False, True, False])
        model, guide, _ = with_conditional(KNOWN["normal"])
        units = run(Programs(handlers.mask(model, mask=mask), handlers.mask(guide, mask=mask), ()))
        assert float(units.variance[0]) == pytest.approx(LOCS[mask].var(ddof=1))
        assert units.num_data == 3

    def test_what_all_data_share_cancels(self) -> None:
        """z_i ~ N(θ + x_i, 1), θ drawn anew in every run: exactly the variance of x."""

        def model() -> None:
            numpyro.sample("theta", dist.Normal(0.0, 1.0))
            with numpyro.plate("data", 5):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        def guide() -> None:
            theta = numpyro.sample("theta", dist.Normal(0.0, 10.0))
            with numpyro.plate("data", 5):
                numpyro.sample("z", dist.Normal(theta + LOCS, 1.0))

        units = run(Programs(model, guide, ()), num_samples=4)
        assert float(units.variance[0]) == pytest.approx(LOCS.var(ddof=1), rel=1e-10)


class TestDrawnMeans:
    def test_is_unbiased(self) -> None:
        """The variance of the mean of 5 draws is 2/5, even where it ignores x."""
        locs = programs.data(2000, 1)[:, 0]
        expected, error = known_errors(locs, noise=2.0, num_samples=5)
        assert (4 * error < 2 / 5).all(), "too few data to tell"
        case = with_conditional(lambda loc: dist.Laplace(loc, 1.0).to_event(1), locs)
        assert (abs(run(case, num_samples=5).variance - expected) < 4 * error).all()

    def test_knows_its_error(self) -> None:
        locs = programs.data(50, 1)[:, 0]
        expected, error = known_errors(locs, noise=1.0, num_samples=100)
        case = with_conditional(lambda loc: dist.MultivariateNormal(loc, jnp.eye(2)), locs)
        units = run(case, num_samples=100)
        np.testing.assert_allclose(units.standard_error, error, rtol=0.35)
        assert (abs(units.variance - expected) < 4 * error).all()

    def test_a_latent_that_depends_on_another(self) -> None:
        """z2 | z1 ~ N(2 z1, .), z1 ~ N(0, 1): a location that is random, with a mean of 0."""
        units = run(programs.two_latents(num=200, exact=True), num_samples=30)
        assert units.variance[0] == 0, "its mean is known to be 0"
        assert 0 < units.standard_error[1] < 0.05
        assert abs(units.variance[1]) < 4 * units.standard_error[1]

    def test_the_mean_is_that_of_the_latent_itself(self) -> None:
        """A normal seen through exp: E[z] = exp(m + s² / 2), not m."""

        def model() -> None:
            with numpyro.plate("data", 5):
                numpyro.sample("z", dist.LogNormal(0.0, 1.0))

        def guide() -> None:
            with numpyro.plate("data", 5):
                numpyro.sample("z", dist.LogNormal(LOCS / 2, 0.5))

        units = run(Programs(model, guide, ()), num_samples=200)
        expected = np.exp(LOCS / 2 + 0.125).var(ddof=1)
        assert 0 < units.standard_error[0] < 0.1 * expected
        assert abs(units.variance[0] - expected) < 4 * units.standard_error[0]

    def test_a_guide_that_draws_all_data_at_once(self) -> None:
        """The data are in the event dim of one normal, whose location is none per datum."""
        locs = programs.data(500, 1)[:, 0]

        def model() -> None:
            with numpyro.plate("data", 500):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        def guide() -> None:
            numpyro.sample("z", dist.Normal(locs, 0.5).to_event(1))

        units = run(Programs(model, guide, ()), sites="z")
        assert 0 < units.standard_error[0] < 0.05
        assert abs(units.variance[0] - locs.var(ddof=1)) < 4 * units.standard_error[0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"threshold": -0.1}, "threshold >= 0; got -0.1"),
        ({"threshold": math.nan}, "threshold >= 0; got nan"),
        ({"num_samples": 3}, "num_samples >= 4; got 3"),
    ],
)
def test_refuses(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(programs.vae(), **settings)

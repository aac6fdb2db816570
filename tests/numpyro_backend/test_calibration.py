"""Simulation-based calibration of linear models, whose posteriors are known."""

from __future__ import annotations

import math
import warnings
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
from scipy.stats import randint

from numpyro_backend._diagnostics.calibration import Calibration, simulation_based_calibration
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

WEIGHT = np.array([[1.0, 0.5], [-0.3, 1.2], [0.8, 0.7]])
NOISE = 0.6
COVARIANCE = np.linalg.inv(np.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2)


def linear(
    *,
    num: int = 150,
    batch: int | None = None,
    mask: Any = True,
    seen: Callable[[Array], None] = lambda x: None,
) -> Programs:
    """x_i ~ N(W z_i, 0.6² I), z_i ~ N(0, I), and the exact posterior, to be widened and moved.

    The user's own data are a hundred times larger than the model's.
    """

    def model(x: Array) -> None:
        with numpyro.plate("data", num, subsample_size=batch) as index, handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            rows = jnp.asarray(x)[index]
            numpyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=rows)

    def guide(x: Array) -> None:
        scale, shift = numpyro.param("scale", 1.0), numpyro.param("shift", 0.0)
        with numpyro.plate("data", num, subsample_size=batch) as index, handlers.mask(mask=mask):
            rows = jnp.asarray(x)[index]
            jax.debug.callback(seen, rows)
            loc = rows @ WEIGHT @ COVARIANCE / NOISE**2 + shift
            factor = scale * np.linalg.cholesky(COVARIANCE)
            numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    return Programs(model, guide, (100 * programs.data(num),))


def calibrate(
    case: Programs, *, params: dict[str, Any] | None = None, **settings: Any
) -> Calibration:
    settings = {"num_simulations": 4, "num_samples": 49, **settings}
    key = jax.random.key(0)
    return simulation_based_calibration(
        key, params or {}, case.model, case.guide, *case.args, **settings
    )


def assert_uniform(calibration: Calibration) -> None:
    assert min(calibration.p_values) > 1e-3
    ranks, largest = calibration.ranks, calibration.num_samples
    error = math.sqrt(largest * (largest + 2) / 12 / len(ranks))
    assert (abs(ranks.mean(0) - largest / 2) < 4 * error).all()


class TestRanks:
    def test_are_uniform_for_the_exact_posterior(self) -> None:
        calibration = calibrate(linear())
        assert_uniform(calibration)
        assert calibration.ranks.shape == (600, 2)
        assert (calibration.ranks.min(), calibration.ranks.max()) == (0, 49)
        assert calibration.dimensions == ("z[0]", "z[1]")

    def test_of_a_guide_that_is_too_narrow_and_too_wide(self) -> None:
        """The fifth of the ranks at the ends has more than its share, and less."""
        calibration = calibrate(linear(), params={"scale": np.array([[0.5], [2.0]])})
        assert max(calibration.p_values) < 1e-6
        narrow, wide = ((calibration.ranks < 5) | (calibration.ranks > 44)).mean(0)
        assert narrow > 0.3
        assert wide < 0.1

    def test_of_a_guide_that_is_too_high(self) -> None:
        calibration = calibrate(linear(), params={"shift": 0.3})
        assert max(calibration.p_values) < 1e-6
        assert (calibration.ranks.mean(0) < 20).all(), "24.5 where uniform"

    def test_masked_rows_have_none(self) -> None:
        calibration = calibrate(linear(mask=np.arange(150) % 3 != 0))
        assert calibration.ranks.shape == (400, 2)
        assert_uniform(calibration)

    def test_of_the_named_latents_in_single_precision(self) -> None:
        case = programs.two_latents(exact=True)
        with jax.enable_x64(False):
            calibration = calibrate(case, sites="z2", data_args=lambda drawn: (case.args, {}))
        assert calibration.dimensions == ("z2",)

    def test_too_few_for_a_p_value(self) -> None:
        with pytest.raises(ValueError, match=r"at least 15 ranks.*got 10 of 50"):
            _ = Calibration(np.zeros((10, 1), int), 49, ("z",)).p_values


class TestData:
    def test_of_minibatches(self) -> None:
        """The guide sees the model's data, not the user's, and the same in each of its draws."""
        seen: list[np.ndarray] = []
        calibration = calibrate(linear(batch=100, seen=seen.append), num_simulations=6)
        assert calibration.ranks.shape == (600, 2)
        assert_uniform(calibration)
        jax.effects_barrier()
        # Of which precision they are depends on the thread that the callback ran in.
        single = (np.asarray(x, np.float32) for x in seen)
        by_simulation = {x.tobytes(): x for x in single}
        assert len(by_simulation) == 6
        expected = (WEIGHT @ WEIGHT.T).diagonal() + NOISE**2
        variance = np.concatenate(list(by_simulation.values())).var(0)
        np.testing.assert_allclose(variance, expected, rtol=4 * math.sqrt(2 / 600))

    def test_images_and_labels_in_a_dictionary(self) -> None:
        """Images are observed flat, and may be missing; labels, of the same length, stay."""
        seen: list[dict[str, np.ndarray]] = []

        def model(*, data: dict[str, Array]) -> None:
            with numpyro.plate("data", 20):
                z = numpyro.sample("z", dist.Normal(data["labels"], 1.0))
                fn = dist.Bernoulli(logits=jnp.broadcast_to(z[:, None], (20, 4))).to_event(1)
                numpyro.sample("x", fn, obs=data["images"].reshape(20, -1))

        def guide(*, data: dict[str, Array]) -> None:
            jax.debug.callback(seen.append, data)
            with numpyro.plate("data", 20):
                loc = data["images"].mean((1, 2, 3)) + data["labels"]
                numpyro.sample("z", dist.Normal(loc, 1.0))

        images = np.full((20, 1, 2, 2), math.nan, np.float32)
        data = {"images": images, "labels": np.arange(20.0) - 10}
        simulation_based_calibration(
            jax.random.key(0), {}, model, guide, data=data, num_simulations=1, num_samples=3
        )
        jax.effects_barrier()
        assert len(seen) >= 3
        for shown in seen:
            assert shown["images"].shape == (20, 1, 2, 2)
            assert shown["images"].dtype == np.float32
            assert set(np.unique(shown["images"])) == {0.0, 1.0}
            np.testing.assert_array_equal(shown["labels"], data["labels"])

    def test_several_sites_observed(self) -> None:
        """And a deterministic one, which is no data."""
        x, y = programs.data(150, 2).T

        def model(x: Array, y: Array) -> None:
            with numpyro.plate("data", 150):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                mean = numpyro.deterministic("mean", 2 * z)
                numpyro.sample("x", dist.Normal(mean + 1000, 1.0), obs=x)
                numpyro.sample("y", dist.Normal(mean - 1000, 1.0), obs=y)

        def guide(x: Array, y: Array) -> None:
            with numpyro.plate("data", 150):
                numpyro.sample("z", dist.Normal(2 * (x + y) / 9, 1 / 3))

        assert_uniform(calibrate(Programs(model, guide, (x, y))))

    def test_arguments_that_a_function_rebuilds(self) -> None:
        """Sites x_0, x_1 of a loop are columns of the data; exact, and so uniform."""

        def model(x: Array) -> None:
            with numpyro.plate("data", 100):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                for t in range(2):
                    numpyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

        def guide(x: Array) -> None:
            with numpyro.plate("data", 100):
                numpyro.sample("z", dist.Normal(x.sum(1) / 3, math.sqrt(1 / 3)))

        case = Programs(model, guide, (np.zeros((100, 2)),))
        with pytest.raises(ValueError, match=r"what the site 'x_0' observes is none.*data_args"):
            calibrate(case)

        def data_args(drawn: dict[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (jnp.stack([drawn["x_0"], drawn["x_1"]], 1),), {}

        assert_uniform(calibrate(case, data_args=data_args))


def test_the_plot_in_the_documentation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", exc_type=ImportError)
    pytest.importorskip("matplotlib").use("agg")
    calibration = Calibration(np.random.default_rng(0).integers(0, 50, (60, 1)), 49, ("z",))
    uniform = randint(0, calibration.num_samples + 1)
    axes = arviz.plot_ecdf(
        calibration.ranks[:, 0],
        eval_points=np.arange(calibration.num_samples + 1),
        cdf=uniform.cdf,
        rvs=uniform.rvs,
        confidence_bands=True,
    )
    assert axes.get_lines()


def _with_factor() -> Programs:
    case = linear()

    def model(x: Array) -> None:
        case.model(x)
        numpyro.factor("penalty", -1.0)

    return Programs(model, case.guide, case.args)


def _without_data() -> Programs:
    def program(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(program, program, (np.zeros(5),))


def _observed_twice() -> Programs:
    case = linear()

    def model(x: Array) -> None:
        case.model(x)
        numpyro.sample("again", dist.Normal(0.0, jnp.ones(x.shape)).to_event(2), obs=x)

    return Programs(model, case.guide, case.args)


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "simulations": (linear(), {"num_simulations": 0}, "num_simulations >= 1 .*num_simulations=0"),
    "samples": (linear(), {"num_samples": 1}, "num_samples >= 2; got .*num_samples=1"),
    "factor": (_with_factor(), {}, "calibration: the model holds the factor 'penalty'"),
    "no data": (_without_data(), {}, "calibration: the model observes nothing"),
    "other data": (
        programs.two_latents(),
        {},
        "what the site 'x' observes is none of the arguments: pass data_args",
    ),
    "observed twice": (_observed_twice(), {}, "what the site 'again' observes is none of the"),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        calibrate(case, **settings)

"""The MMD test: its value in closed form, the data it compares, what it refuses."""

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

from numpyro_backend import IMQ, RBF, mmd_squared
from numpyro_backend._diagnostics.mmd_test import MMDTest, mmd_test, pair_contrasts
from pyro_infovae._core.pair_statistics import mean_of_pairs
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def run(
    case: Programs, *, params: dict[str, Any] | None = None, seed: int = 0, **settings: Any
) -> MMDTest:
    key = jax.random.key(seed)
    return mmd_test(key, params or {}, case.model, case.guide, *case.args, **settings)


def linear(num: int) -> Programs:
    """z ~ N(0, 1), x ~ N(z, 1), of data that the model would draw, and the exact posterior."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(numpyro.param("prior_loc", 9.0), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Array) -> None:
        shift, scale = numpyro.param("shift", 0.0), numpyro.param("scale", 1.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(scale * (x / 2 + shift), scale * math.sqrt(0.5)))

    return Programs(model, guide, (math.sqrt(2.0) * programs.data(num, 1)[:, 0],))


def expected_mmd_squared(loc: float, variance: float, *, lengthscale: float) -> float:
    """MMD² of N(loc, variance) and N(0, 1) under an RBF kernel."""

    def mean_kernel(difference: float, total: float) -> float:
        width = lengthscale**2 + total
        return lengthscale / math.sqrt(width) * math.exp(-(difference**2) / (2 * width))

    return (
        mean_kernel(0.0, 2 * variance) + mean_kernel(0.0, 2.0) - 2 * mean_kernel(loc, 1 + variance)
    )


def test_contrasts_are_the_estimator_that_leaves_out_pairs_of_a_datum() -> None:
    x, y = jnp.asarray(programs.data(9, 2)), jnp.asarray(programs.data(9, 2, seed=5))
    both = jax.jit(lambda: (mmd_squared(x, y, IMQ(), num_data=9), pair_contrasts(x, y, IMQ())))
    expected, h = map(np.asarray, both())
    assert not h.diagonal().any()
    np.testing.assert_allclose(h, h.T)
    assert mean_of_pairs(h) == pytest.approx(float(expected), rel=1e-12)


class TestValue:
    def test_closed_form(self) -> None:
        params = {"prior_loc": 0.0, "shift": 0.3, "scale": 1.5}
        test = run(linear(1500), params=params, kernel=RBF(0.8), num_permutations=200)
        expected = expected_mmd_squared(0.45, 2.25, lengthscale=0.8)
        assert expected > 8 * test.standard_error, "too few data to tell"
        assert test.mmd_squared == pytest.approx(expected, abs=4 * test.standard_error)
        assert test.p_value == 1 / 201
        assert (test.num_data, test.num_permutations) == (1500, 200)

    def test_of_the_exact_posterior(self) -> None:
        """And the key determines all of it."""
        first, second = (run(linear(400), params={"prior_loc": 0.0}) for _ in range(2))
        assert first == second
        assert first.p_value > 0.01
        assert abs(first.mmd_squared) < 4 * first.standard_error

    def test_a_prior_that_depends_on_the_datum(self) -> None:
        """Codes far apart from one another, each from its own prior: nothing is found."""
        assert run(programs.covariate_prior(num=100, exact=True)).p_value > 0.01


class TestData:
    def test_at_most_max_data_in_single_precision(self) -> None:
        with jax.enable_x64(False):
            assert run(programs.vae(num=13, batch=5), max_data=9).num_data == 9

    def test_masked_data_are_left_out(self) -> None:
        assert run(programs.masked_vae()).num_data == 8

    def test_only_the_named_latents(self) -> None:
        """z1 is from the prior, z2 is not."""
        case = programs.two_latents(num=300)
        assert run(case, params={"weight": 0.0}, sites="z1").p_value > 0.01


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "permutations": (programs.vae(), {"num_permutations": 0}, "num_permutations >= 1; got 0"),
    "max_data": (programs.vae(), {"max_data": 3}, "max_data >= 4; got 3"),
    "kernel": (
        programs.vae(),
        {"kernel": lambda x, y: jnp.zeros((len(x), len(y), 2))},
        r"Expected kernel\(x, y\) of shape \(12, 12\); got \(12, 12, 2\)",
    ),
    "few data": (programs.vae(num=3), {}, "mmd_test: Expected at least 4 data; got 3"),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(case, **settings)

"""A question asked again, after the next epoch say, compiles nothing, and is about what is now."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from numpyro_backend import diagnostics as d
from numpyro_backend._arrays.shared_jit import _met_before
from numpyro_backend.inference_data import _Sampler
from tests.numpyro_backend.compilations import counting_compilations

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:log_evidence"),
]

X = np.array([0.5, -1.0, 2.0, 0.3])


class Conjugate:
    """x ~ N(z, noise²), z ~ N(0, 1) with its exact posterior: the evidence is that of any draw."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    def model(self, x: Array, *, shifted: bool = False) -> None:
        noise = numpyro.param("noise", 1.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z + self.bias + (3.0 if shifted else 0.0)
            numpyro.sample("x", dist.Normal(loc, noise), obs=x)

    def guide(self, x: Array, *, shifted: bool = False) -> None:
        noise = numpyro.param("noise", 1.0)
        centred = x - self.bias - (3.0 if shifted else 0.0)
        with numpyro.plate("data", len(x)):
            loc = centred / (1 + noise**2)
            numpyro.sample("z", dist.Normal(loc, noise / jnp.sqrt(1 + noise**2)))


def log_evidence(
    program: Conjugate, noise: float, x: Any, *, num_samples: int = 4, **settings: Any
) -> np.ndarray:
    key = jax.random.key(0)
    found = d.log_evidence(
        key, {"noise": noise}, program.model, program.guide, x, num_samples=num_samples, **settings
    )
    assert len(found.log_weights) == num_samples
    return found.log_evidence


def exact(noise: float, x: Any) -> Array:
    return dist.Normal(0.0, math.hypot(1.0, noise)).log_prob(x)


def test_evidence_of_other_parameters_and_other_data() -> None:
    program = Conjugate()
    _met_before.cache_clear()
    with counting_compilations() as first:
        np.testing.assert_allclose(log_evidence(program, 1.0, X), exact(1.0, X))
    with counting_compilations() as again:
        others = log_evidence(program, 2.0, X), log_evidence(program, 2.0, X[::-1] + 1)
    assert len(first) >= 2, "the layout, and the weights"
    assert not again
    np.testing.assert_allclose(others, (exact(2.0, X), exact(2.0, X[::-1] + 1)))


@pytest.mark.slow
def test_evidence_under_other_settings() -> None:
    """Shapes, numbers of draws, arguments that are no arrays, and what the programs read."""
    program = Conjugate()
    log_evidence(program, 1.0, X)
    for found, centre, x in (
        (log_evidence(program, 1.0, X[:2]), 0.0, X[:2]),
        (log_evidence(program, 1.0, X, num_samples=3, chunk_size=2), 0.0, X),
        (log_evidence(program, 1.0, X, shifted=True), 3.0, X),
        (log_evidence(Conjugate(bias=0.5), 1.0, X), 0.5, X),
    ):
        np.testing.assert_allclose(found, exact(1.0, x - centre))
    program.bias = -2.0
    np.testing.assert_allclose(log_evidence(program, 1.0, X), exact(1.0, X + 2))


def test_evidence_of_programs_that_look_at_their_data() -> None:
    def model(x: np.ndarray) -> None:
        with numpyro.plate("data", int((x > 0).sum())):
            numpyro.sample("x", dist.Normal(float(x.mean()), 1.0), obs=x[x > 0])

    def guide(x: np.ndarray) -> None:
        pass

    for x in (X, 2 * X):
        found = d.log_evidence(jax.random.key(0), {}, model, guide, x, num_samples=2)
        np.testing.assert_allclose(
            found.log_evidence, dist.Normal(x.mean(), 1.0).log_prob(x[x > 0])
        )


def draw_all(rng_key: Array, params: Any, model: Any, guide: Any, x: Any) -> Any:
    sampler = _Sampler.of(rng_key, params, model, guide, (x,), {})
    return sampler.draw(jax.random.split(rng_key, 3), None).groups["posterior_predictive"]["x"]


QUESTIONS: dict[str, Callable[..., Any]] = {
    "active_units": lambda *a: d.active_units(*a, num_samples=4).variance,
    "aggregated_posterior": lambda *a: d.aggregated_posterior(*a).mutual_information,
    "mmd_test": lambda *a: d.mmd_test(*a, num_permutations=2).mmd_squared,
    "calibration": lambda *a: (
        d.simulation_based_calibration(*a, num_simulations=2, num_samples=20).ranks
    ),
    "mutual_information": lambda *a: (
        d.mutual_information(*a, num_steps=2, num_samples=4, batch_size=4).estimate
    ),
    "inference data": draw_all,
}


QUICK = "active_units", "aggregated_posterior", "mmd_test"


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(ask, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, ask in QUESTIONS.items()
    ],
)
def test_a_question_asked_again_compiles_nothing(ask: Callable[..., Any]) -> None:
    program, key = Conjugate(), jax.random.key(1)
    x = np.linspace(-2.0, 2.0, 12)
    first = ask(key, {"noise": 1.0}, program.model, program.guide, x)
    with counting_compilations() as again:
        other = ask(key, {"noise": 3.0}, program.model, program.guide, 2 * x)
    assert not again
    assert not np.array_equal(first, other)

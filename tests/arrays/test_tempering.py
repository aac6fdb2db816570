"""Schedules against their formulas in plain floats, and their gradients against differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_infovae.tempering import free_inverse_temperatures, inverse_temperatures
from tests.arrays.libraries import JAX, TORCH, Library, assert_agree

SCHEDULES: dict[str, Any] = {
    "quadratic": "quadratic",
    "constant": "constant",
    "none": "none",
    "callable": lambda beta_0, k, num_steps: beta_0 ** (1 - k / num_steps),
}


def quadratic(beta_0: float, num_steps: int) -> list[float]:
    start = 1 / math.sqrt(beta_0)
    return [1 / ((1 - start) * (k / num_steps) ** 2 + start) ** 2 for k in range(num_steps + 1)]


@pytest.mark.parametrize("beta_0", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_quadratic_is_its_formula(library: Library, beta_0: float, num_steps: int) -> None:
    schedule = library.module("tempering").inverse_temperatures
    actual = schedule(beta_0, num_steps, "quadratic")
    np.testing.assert_allclose(actual, quadratic(beta_0, num_steps), rtol=1e-14)
    np.testing.assert_array_equal(actual, schedule(beta_0, num_steps))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quadratic_ends_at_exactly_one(library: Library, dtype: str) -> None:
    schedule = library.module("tempering").inverse_temperatures
    for beta_0 in np.linspace(0.01, 1.0, 50, dtype=dtype):
        beta = schedule(library.array(beta_0), 7)
        assert np.asarray(beta).dtype == dtype
        assert beta[-1] == 1
    np.testing.assert_array_equal(beta, np.ones(8))


def test_constant_and_none(library: Library) -> None:
    schedule = library.module("tempering").inverse_temperatures
    assert schedule(0.3, 2, "constant").tolist() == [0.3, 0.3, 0.3]
    assert schedule(0.3, 2, "none").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("as_array", [True, False])
def test_a_callable_gives_every_entry(library: Library, as_array: bool) -> None:
    def linear(beta_0: Any, k: int, num_steps: int) -> Any:
        start = beta_0 if as_array else 0.3
        return start + (1 - start) * k / num_steps if k else start

    actual = library.module("tempering").inverse_temperatures(0.3, 4, linear)
    np.testing.assert_allclose(actual, [0.3, 0.475, 0.65, 0.825, 1.0], rtol=1e-14)


def test_free_factors_are_the_momentum_factors(library: Library) -> None:
    factors = np.array([0.9, 0.5, 0.7])
    beta = np.asarray(free_inverse_temperatures(library.array(factors)))
    np.testing.assert_allclose(np.sqrt(beta[:-1] / beta[1:]), factors, rtol=1e-14)
    np.testing.assert_allclose(beta[0], (0.9 * 0.5 * 0.7) ** 2, rtol=1e-14)
    assert beta[-1] == 1


def test_equal_free_factors_are_geometric(library: Library) -> None:
    beta = free_inverse_temperatures(library.array(np.full(5, 0.3 ** (1 / 10))))
    np.testing.assert_allclose(beta, [0.3 ** (1 - k / 5) for k in range(6)], rtol=1e-14)


@pytest.mark.usefixtures("jax_active")
def test_jax_equals_torch() -> None:
    """Values and gradients of every schedule, for a scalar beta_0 and for factors."""

    def schedules(library: Library) -> Callable[..., list[Any]]:
        tempering = library.module("tempering")

        def entries(beta_0: Any, factors: Any) -> list[Any]:
            named = [tempering.inverse_temperatures(beta_0, 4, s) for s in SCHEDULES.values()]
            free = tempering.free_inverse_temperatures(factors)
            return [beta for schedule in (*named, free) for beta in schedule]

        return entries

    rng = np.random.default_rng(0)
    samples = [(rng.uniform(0.01, 1.0), rng.uniform(0.1, 1.0, size=6)) for _ in range(10)]
    assert_agree(*(each.differentiate(schedules(each), *samples) for each in (JAX, TORCH)))


@pytest.mark.parametrize("tempering", ["quadratic", "constant", SCHEDULES["callable"]])
def test_gradient_in_beta_0(tempering: str | Callable[[Tensor, int, int], Tensor]) -> None:
    beta_0 = torch.tensor(0.3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: inverse_temperatures(b, 3, tempering), (beta_0,))


def test_gradient_in_the_factors() -> None:
    factors = torch.tensor([0.9, 0.5, 0.7], requires_grad=True)
    assert torch.autograd.gradcheck(free_inverse_temperatures, (factors,))


@pytest.mark.parametrize("tempering", ["quadratic", "constant", "none", lambda b, k, n: 1.0])
def test_dtype_follows_beta_0(library: Library, tempering: Any) -> None:
    schedule = library.module("tempering").inverse_temperatures
    beta_0 = library.array(np.float32(0.3))
    assert np.asarray(schedule(beta_0, 3, tempering)).dtype == np.float32
    assert np.asarray(schedule(0.3, 3, tempering)).dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0.0, 3), r"Expected 0 < beta_0 <= 1; got 0.0"),
        ((1.5, 3), r"Expected 0 < beta_0 <= 1; got 1.5"),
        ((math.nan, 3), r"Expected 0 < beta_0 <= 1; got nan"),
        ((np.ones(2), 3), r"Expected beta_0 of shape \(\); got \(2,\)"),
        ((0.3, 0), r"Expected num_steps >= 1; got 0"),
        (
            (0.3, 3, "cubic"),
            r"in an objective also 'free', or a callable .*; got 'cubic'",
        ),
        ((0.3, 3, "free"), r"got 'free' .*free_inverse_temperatures\(factors\)"),
        (
            (0.3, 3, lambda b, k, n: -1.0),
            r"tempering\(beta_0, 0, 3\) to be positive and finite; got -1.0",
        ),
        (
            (0.3, 3, lambda b, k, n: 1.0 if k < 2 else math.inf),
            r"tempering\(beta_0, 2, 3\) to be positive and finite; got inf",
        ),
        (
            (0.3, 3, lambda b, k, n: b[None]),
            r"tempering\(beta_0, 0, 3\) to be a scalar; got shape \(1,\)",
        ),
    ],
)
def test_invalid_schedules(library: Library, arguments: tuple[Any, ...], match: str) -> None:
    converted = [library.array(a) if isinstance(a, np.ndarray) else a for a in arguments]
    with pytest.raises(ValueError, match=match):
        library.module("tempering").inverse_temperatures(*converted)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_invalid_factors(library: Library, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected factors of shape \(num_steps,\), .*; got \("):
        free_inverse_temperatures(library.array(np.ones(shape)))

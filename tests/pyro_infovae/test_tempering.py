"""Schedules against their formulas in plain floats, and their gradients against differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_infovae.tempering import free_inverse_temperatures, inverse_temperatures


def quadratic(beta_0: float, num_steps: int) -> list[float]:
    start = 1 / math.sqrt(beta_0)
    return [1 / ((1 - start) * (k / num_steps) ** 2 + start) ** 2 for k in range(num_steps + 1)]


@pytest.mark.parametrize("beta_0", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_quadratic_is_its_formula(beta_0: float, num_steps: int) -> None:
    actual = inverse_temperatures(beta_0, num_steps, "quadratic")
    torch.testing.assert_close(
        actual, torch.tensor(quadratic(beta_0, num_steps)), rtol=1e-14, atol=0
    )
    torch.testing.assert_close(actual, inverse_temperatures(beta_0, num_steps), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quadratic_ends_at_exactly_one(dtype: torch.dtype) -> None:
    for beta_0 in torch.linspace(0.01, 1.0, 100, dtype=dtype):
        assert inverse_temperatures(beta_0, 7)[-1] == 1
    assert torch.equal(
        inverse_temperatures(torch.ones((), dtype=dtype), 7), torch.ones(8, dtype=dtype)
    )


def test_constant_and_none() -> None:
    assert inverse_temperatures(0.3, 2, "constant").tolist() == [0.3, 0.3, 0.3]
    assert inverse_temperatures(0.3, 2, "none").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_callable_gives_every_entry(as_tensor: bool) -> None:
    def linear(beta_0: Tensor, k: int, num_steps: int) -> float | Tensor:
        start = beta_0 if as_tensor else 0.3
        return start + (1 - start) * k / num_steps if k else start

    actual = inverse_temperatures(0.3, 4, linear)
    torch.testing.assert_close(actual, torch.tensor([0.3, 0.475, 0.65, 0.825, 1.0]))


def test_free_factors_are_the_momentum_factors() -> None:
    factors = torch.tensor([0.9, 0.5, 0.7])
    beta = free_inverse_temperatures(factors)
    torch.testing.assert_close((beta[:-1] / beta[1:]).sqrt(), factors, rtol=1e-14, atol=0)
    torch.testing.assert_close(beta[0].item(), (0.9 * 0.5 * 0.7) ** 2, rtol=1e-14, atol=0)
    assert beta[-1] == 1


def test_equal_free_factors_are_geometric() -> None:
    beta = free_inverse_temperatures(torch.full((5,), 0.3 ** (1 / 10)))
    expected = torch.tensor([0.3 ** (1 - k / 5) for k in range(6)])
    torch.testing.assert_close(beta, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tempering", ["quadratic", "constant", lambda b, k, n: b ** (1 - k / n)])
def test_gradient_in_beta_0(tempering: str | Callable[[Tensor, int, int], Tensor]) -> None:
    beta_0 = torch.tensor(0.3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: inverse_temperatures(b, 3, tempering), (beta_0,))


def test_gradient_in_the_factors() -> None:
    factors = torch.tensor([0.9, 0.5, 0.7], requires_grad=True)
    assert torch.autograd.gradcheck(free_inverse_temperatures, (factors,))


@pytest.mark.parametrize("tempering", ["quadratic", "constant", "none", lambda b, k, n: 1.0])
def test_dtype_follows_beta_0(tempering: str | Callable[[Tensor, int, int], float]) -> None:
    beta_0 = torch.tensor(0.3, dtype=torch.float32)
    assert inverse_temperatures(beta_0, 3, tempering).dtype == torch.float32
    assert inverse_temperatures(0.3, 3, tempering).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0.0, 3), r"Expected 0 < beta_0 <= 1; got 0.0"),
        ((1.5, 3), r"Expected 0 < beta_0 <= 1; got 1.5"),
        ((math.nan, 3), r"Expected 0 < beta_0 <= 1; got nan"),
        ((torch.ones(2), 3), r"Expected beta_0 of shape \(\); got \(2,\)"),
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
            (0.3, 3, lambda b, k, n: b.expand(2)),
            r"tempering\(beta_0, 0, 3\) to be a scalar; got shape \(2,\)",
        ),
    ],
)
def test_invalid_schedules(arguments: tuple[object, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        inverse_temperatures(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_invalid_factors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected factors of shape \(num_steps,\), .*; got \("):
        free_inverse_temperatures(torch.ones(shape))

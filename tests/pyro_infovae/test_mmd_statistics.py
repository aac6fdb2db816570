"""What the estimators promise on average: tolerances are in standard errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared, mmd_squared_normal

GUIDE_SCALE = 0.3
AGGREGATE_SCALE = math.sqrt(1 - GUIDE_SCALE**2)  # of the locations that make q(z) = N(0, I)


def estimates(x: Tensor, y: Tensor, kernel: RBF | None = None, **options: Any) -> Tensor:
    """Return an estimate for each of many samples x and y."""
    kernel = kernel or RBF()
    return torch.func.vmap(lambda a, b: mmd_squared(a, b, kernel, **options))(x, y)


def standard_errors_from(values: Tensor, expected: float) -> float:
    """Return how many standard errors the mean lies from its expectation."""
    return ((values.mean() - expected) / (values.std() / math.sqrt(len(values)))).item()


def test_unbiased_is_zero_on_average_between_equal_laws() -> None:
    x, y = torch.randn(10_000, 8, 2), torch.randn(10_000, 6, 2)
    assert abs(standard_errors_from(estimates(x, y), 0.0)) < 4
    assert standard_errors_from(estimates(x, y, estimator="biased"), 0.0) > 4


def test_unbiased_estimates_the_true_discrepancy() -> None:
    # Between N(0, 1) and N(1, 1), with lengthscale 1.
    expected = 2 / math.sqrt(3) * (1 - math.exp(-1 / 6))
    x, y = torch.randn(10_000, 8, 1), torch.randn(10_000, 6, 1) + 1
    assert abs(standard_errors_from(estimates(x, y, RBF(1.0)), expected)) < 4


def test_several_draws_per_datum_stay_unbiased_only_if_told_apart() -> None:
    times, batch_size, draws, d = 5000, 8, 4, 2
    loc = AGGREGATE_SCALE * torch.randn(times, 1, batch_size, d)
    x = (loc + GUIDE_SCALE * torch.randn(times, draws, batch_size, d)).flatten(1, 2)
    y = torch.randn(times, 2 * batch_size, d)
    assert abs(standard_errors_from(estimates(x, y, batch_size=batch_size), 0.0)) < 4
    assert standard_errors_from(estimates(x, y), 0.0) > 4


def test_prior_of_each_datum_stays_unbiased_only_if_told_apart() -> None:
    times, batch_size, d = 5000, 8, 2
    covariate = AGGREGATE_SCALE * torch.randn(times, batch_size, d)
    x, y = (covariate + GUIDE_SCALE * torch.randn(times, batch_size, d) for _ in range(2))
    assert abs(standard_errors_from(estimates(x, y, batch_size=batch_size), 0.0)) < 4
    assert standard_errors_from(estimates(x, y), 0.0) < -4


@pytest.mark.parametrize("batch_size", [None, 3])
def test_closed_form_is_the_mean_of_the_unbiased_estimator(batch_size: int | None) -> None:
    times, n, m, d = 100_000, 6, 9, 2
    x_loc, x_scale, y_loc, y_scale = (torch.rand(k, d) for k in (n, n, m, m))
    kernel = RBF((0.8, 1.5))
    options: dict[str, Any] = {"x_weights": torch.rand(n), "batch_size": batch_size}
    expected = mmd_squared_normal(x_loc, x_scale, y_loc, y_scale, kernel, **options).item()
    x = x_loc + x_scale * torch.randn(times, n, d)
    y = y_loc + y_scale * torch.randn(times, m, d)
    values = estimates(x, y, kernel, **options)
    assert abs(standard_errors_from(values, expected)) < 4
    assert values.mean().item() == pytest.approx(expected, abs=1e-3)


def test_closed_form_has_less_variance_over_minibatches() -> None:
    times, n, d = 200, 128, 8
    loc, scale = AGGREGATE_SCALE * torch.randn(times, n, d), torch.full((n, d), GUIDE_SCALE)
    prior = torch.zeros(n, d), torch.ones(n, d)
    exact = torch.stack([mmd_squared_normal(a, scale, *prior, RBF()) for a in loc])
    drawn = estimates(loc + scale * torch.randn(times, n, d), torch.randn(times, n, d))
    assert abs(standard_errors_from(exact, 0.0)) < 4
    assert drawn.var() / exact.var() > 3

"""The same schedules as the PyTorch half."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import numpyro_backend.tempering as tempering
import pyro_infovae.tempering as torch_tempering
from tests.numpyro_backend.error_messages import message_of
from tests.numpyro_backend.potentials import EXAMPLES, NUM_STEPS, SCHEDULES

pytestmark = pytest.mark.usefixtures("strict_ranks", "double_precision")


@pytest.mark.parametrize("schedule", SCHEDULES)
@EXAMPLES
@given(beta_0=st.floats(0.01, 1.0))
def test_schedules_equal_the_other_half(schedule: str, beta_0: float) -> None:
    ours = tempering.inverse_temperatures(beta_0, NUM_STEPS, SCHEDULES[schedule])
    theirs = torch_tempering.inverse_temperatures(beta_0, NUM_STEPS, SCHEDULES[schedule])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    slope = jax.jacobian(
        lambda b: tempering.inverse_temperatures(b, NUM_STEPS, SCHEDULES[schedule])
    )(beta_0)
    other_slope = torch.autograd.functional.jacobian(
        lambda b: torch_tempering.inverse_temperatures(b, NUM_STEPS, SCHEDULES[schedule]),
        torch.tensor(beta_0),
    )
    np.testing.assert_allclose(slope, other_slope, rtol=1e-12, atol=1e-12)


@EXAMPLES
@given(values=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=6))
def test_free_schedule_equals_the_other_half(values: list[float]) -> None:
    factors = np.array(values)
    np.testing.assert_allclose(
        tempering.free_inverse_temperatures(jnp.asarray(factors)),
        torch_tempering.free_inverse_temperatures(torch.from_numpy(factors)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        jax.jacobian(tempering.free_inverse_temperatures)(jnp.asarray(factors)),
        torch.autograd.functional.jacobian(
            torch_tempering.free_inverse_temperatures, torch.from_numpy(factors)
        ),
        rtol=1e-12,
        atol=1e-12,
    )


def test_quadratic_ends_at_exactly_one() -> None:
    for beta_0 in np.linspace(0.01, 1.0, 50, dtype=np.float32):
        beta = tempering.inverse_temperatures(beta_0, 7)
        assert beta.dtype == jnp.float32
        assert beta[-1] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 3),
        (1.5, 3),
        (math.nan, 3),
        (np.ones(2), 3),
        (0.3, 0),
        (0.3, 3, "cubic"),
        (0.3, 3, "free"),
        (0.3, 3, lambda b, k, n: -1.0),
        (0.3, 3, lambda b, k, n: 1.0 if k < 2 else math.inf),
        (0.3, 3, lambda b, k, n: b[None]),
    ],
)
def test_schedule_errors_are_the_other_halfs(arguments: tuple[Any, ...]) -> None:
    other = tuple(torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments)
    assert message_of(lambda: tempering.inverse_temperatures(*arguments)) == message_of(
        lambda: torch_tempering.inverse_temperatures(*other)
    )


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_factor_errors_are_the_other_halfs(shape: tuple[int, ...]) -> None:
    assert message_of(lambda: tempering.free_inverse_temperatures(jnp.ones(shape))) == message_of(
        lambda: torch_tempering.free_inverse_temperatures(torch.ones(shape))
    )

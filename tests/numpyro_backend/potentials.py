"""A potential and two ways to its gradient; the states, schedules and step sizes of a flow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import settings
from jax import Array

EXAMPLES = settings(deadline=None, max_examples=10, derandomize=True)
Sites = dict[str, Any]
NUM_STEPS = 4
SCHEDULES: dict[str, Any] = {
    "quadratic": "quadratic",
    "constant": "constant",
    "none": "none",
    "callable": lambda beta_0, k, num_steps: beta_0 ** (1 - k / num_steps),
}


def random_state(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    u, rho = ({"a": rng.normal(size=(5, 2)), "b": rng.normal(size=5)} for _ in range(2))
    return u, rho


def quartic(u: Sites) -> Any:
    """A nonlinear potential that couples its two sites, row by row, in either framework."""
    sine = torch.sin if isinstance(u["b"], torch.Tensor) else jnp.sin
    return (
        (0.5 * u["a"] ** 2).sum() + (u["b"] ** 4 / 4).sum() + (u["a"].sum(-1) * sine(u["b"])).sum()
    )


def force(potential: Callable[[Sites], Array]) -> Callable[[Sites], tuple[Sites, Array]]:
    def potential_grad(u: Sites) -> tuple[Sites, Array]:
        energy, gradient = jax.value_and_grad(potential)(u)
        return gradient, energy

    return potential_grad


def step_sizes(kind: str) -> tuple[Any, bool]:
    return {
        "number": (0.1, False),
        "dimension": ({"a": np.array([0.05, 0.3]), "b": np.array(0.2)}, False),
        "step": (np.array([0.1, 0.2, 0.05, 0.15]), True),
        "step and dimension": (
            {"a": np.linspace(0.05, 0.3, 8).reshape(4, 2), "b": np.linspace(0.1, 0.2, 4)},
            True,
        ),
    }[kind]

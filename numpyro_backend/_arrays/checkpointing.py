# SPDX-License-Identifier: MIT
r"""Gradients that are differentiable again, recomputed in backward instead of kept."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

__all__ = ["checkpointed_gradient"]


def checkpointed_gradient(
    function: Callable[..., Array],
    inputs: Sequence[Float[Array, "..."]],
    captured: Sequence[Array] = (),
) -> tuple[tuple[Float[Array, "..."], ...], Float[Array, ""]]:
    r"""Gradient of a scalar function, differentiable, without keeping the function's residuals.

    .. math:: g_i = \partial f(x_1, \dots, x_n, c_1, \dots, c_m) / \partial x_i

    The values and derivatives are those of :func:`jax.value_and_grad`; backward evaluates f and its
    gradient again. Hence a chain of gradients takes the memory of one.

    Args:
        function: The scalar f, called as ``function(*inputs, *captured)``.
        inputs: Arrays to differentiate in.
        captured: Other arguments of f.

    Returns:
        The gradients, shaped as the inputs (0 where f does not depend on one), and the value of f.

    Raises:
        ValueError: If the value of f is not a scalar.

    Example:
        >>> def total(weight):
        ...     (gradient,), value = checkpointed_gradient(
        ...         lambda x: (weight * x**2).sum(), (jnp.array([1.0, 2.0]),))
        ...     return gradient.sum()  # 2 * weight * (1 + 2)
        >>> jax.grad(total)(3.0).item()
        6.0
    """

    def scalar(*arguments: Array) -> Array:
        value = function(*arguments)
        if jnp.shape(value) != ():
            raise ValueError(f"Expected a scalar function; got shape {jnp.shape(value)}")
        return value

    differentiate = jax.value_and_grad(scalar, argnums=tuple(range(len(inputs))))
    value, gradients = jax.checkpoint(differentiate)(*inputs, *captured)
    return gradients, value

# SPDX-License-Identifier: MIT
"""Kernels between the rows of two arrays, and the conventions met in other libraries."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pyro_infovae._core.kernels import (
    IMQ,
    RBF,
    SQUARED_DISTANCES,
    Kernel,
    RadialKernel,
    SumKernel,
    rbf_lengthscales,
)

__all__ = [
    "IMQ",
    "RBF",
    "Kernel",
    "RadialKernel",
    "SumKernel",
    "rbf_lengthscales",
    "squared_distances",
]


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    r"""Return :math:`\|x_i - y_j\|^2` for all pairs, by one matrix product.

    The rows are centred first: the product loses the digits that a common offset takes up.
    """
    centre = jax.lax.stop_gradient(y.mean(0, keepdims=True))
    x, y = x - centre, y - centre
    distances = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * x @ y.T
    return jnp.where(distances < 0, 0, distances)


# JAX takes NumPy's arrays as its own.
SQUARED_DISTANCES |= {"jax": squared_distances, "numpy": squared_distances}

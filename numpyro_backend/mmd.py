# SPDX-License-Identifier: MIT
"""Estimators of the squared maximum mean discrepancy between two sets of rows."""

from contextlib import nullcontext

from jaxtyping import Array, Float, Key

from numpyro_backend._arrays.features import average_features, checked_key, draws_of
from numpyro_backend._arrays.normal_pairs import average_normal
from numpyro_backend._arrays.pair_sums import average_radial
from pyro_infovae._core import mmd as _shared
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.features import (
    NUM_FEATURES,
    check_points,
    estimate_mmd_by_features,
)
from pyro_infovae._core.kernels import Kernel
from pyro_infovae._core.mmd import Estimator, PairSums, estimate_mmd, estimate_mmd_of_normals

__all__ = ["Estimator", "mmd_squared", "mmd_squared_normal"]

SUMS = PairSums(nullcontext, average_radial, average_normal, average_features)


@documented(_shared.MMD_SQUARED)
def mmd_squared(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    kernel: Kernel,
    *,
    estimator: Estimator = "unbiased",
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
    batch_size: int | None = None,
    y_scale: Float[Array, "m d"] | None = None,
    num_features: int = NUM_FEATURES,
    rng_key: Key[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Estimate the squared maximum mean discrepancy between the laws of two sets of rows.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_backend.kernels import RBF
        >>> x = jnp.array([[0.0], [1.0]])
        >>> mmd_squared(x, x + 5.0, RBF(0.5)).round(4)
        Array(0.2707, dtype=float32)
        >>> mmd_squared(x, x, RBF(0.5), estimator="biased")
        Array(0., dtype=float32)
        >>> law = {"y_scale": jnp.ones((1, 1)), "rng_key": jax.random.key(0)}
        >>> value = mmd_squared(x, jnp.zeros((1, 1)), RBF(0.5), estimator="features", **law)
    """
    if estimator == "features":
        return estimate_mmd_by_features(
            SUMS,
            draws_of(checked_key(rng_key)),
            x,
            y,
            kernel,
            y_scale=y_scale,
            x_weights=x_weights,
            y_weights=y_weights,
            batch_size=batch_size,
            num_features=num_features,
        )
    check_points(estimator, y_scale)
    return estimate_mmd(
        SUMS,
        x,
        y,
        kernel,
        estimator=estimator,
        x_weights=x_weights,
        y_weights=y_weights,
        batch_size=batch_size,
    )


@documented(_shared.MMD_SQUARED_NORMAL)
def mmd_squared_normal(
    x_loc: Float[Array, "n d"],
    x_scale: Float[Array, "n d"],
    y_loc: Float[Array, "m d"],
    y_scale: Float[Array, "m d"],
    kernel: Kernel,
    *,
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
    batch_size: int | None = None,
    num_data: int | None = None,
) -> Float[Array, ""]:
    """Return the mean of the unbiased estimator over draws from diagonal normals.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_backend.kernels import RBF
        >>> loc, scale = jnp.zeros((2, 1)), jnp.ones((2, 1))
        >>> mmd_squared_normal(loc, scale, loc, 0.0 * scale, RBF(1.0)).round(3)
        Array(0.163, dtype=float32)
    """
    return estimate_mmd_of_normals(
        SUMS,
        (x_loc, x_scale),
        (y_loc, y_scale),
        kernel,
        x_weights=x_weights,
        y_weights=y_weights,
        batch_size=batch_size,
        num_data=num_data,
    )

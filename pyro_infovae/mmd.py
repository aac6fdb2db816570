# SPDX-License-Identifier: MIT
"""Estimators of the squared maximum mean discrepancy between two sets of rows."""

from jaxtyping import Float
from torch import Tensor

from pyro_infovae._arrays.features import DRAWS, average_features
from pyro_infovae._arrays.normal_pairs import average_normal
from pyro_infovae._arrays.pair_sums import average_radial, without_autocast
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

SUMS = PairSums(without_autocast, average_radial, average_normal, average_features)


@documented(_shared.MMD_SQUARED)
def mmd_squared(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    kernel: Kernel,
    *,
    estimator: Estimator = "unbiased",
    x_weights: Float[Tensor, " n"] | None = None,
    y_weights: Float[Tensor, " m"] | None = None,
    batch_size: int | None = None,
    y_scale: Float[Tensor, "m d"] | None = None,
    num_features: int = NUM_FEATURES,
) -> Float[Tensor, ""]:
    """Estimate the squared maximum mean discrepancy between the laws of two sets of rows.

    Example:
        >>> import torch
        >>> from pyro_infovae.kernels import RBF
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> mmd_squared(x, x + 5.0, RBF(0.5))
        tensor(0.2707, dtype=torch.float64)
        >>> mmd_squared(x, x, RBF(0.5), estimator="biased")
        tensor(0., dtype=torch.float64)
        >>> law = {"y_scale": torch.ones(1, 1, dtype=torch.float64)}  # N(0, 1) itself
        >>> value = mmd_squared(x, 0 * x[:1], RBF(0.5), estimator="features", **law)
    """
    if estimator == "features":
        return estimate_mmd_by_features(
            SUMS,
            DRAWS,
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
    x_loc: Float[Tensor, "n d"],
    x_scale: Float[Tensor, "n d"],
    y_loc: Float[Tensor, "m d"],
    y_scale: Float[Tensor, "m d"],
    kernel: Kernel,
    *,
    x_weights: Float[Tensor, " n"] | None = None,
    y_weights: Float[Tensor, " m"] | None = None,
    batch_size: int | None = None,
    num_data: int | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of the unbiased estimator over draws from diagonal normals.

    Example:
        >>> import torch
        >>> from pyro_infovae.kernels import RBF
        >>> loc, scale = torch.zeros(2, 1), torch.ones(2, 1)
        >>> mmd_squared_normal(loc, scale, loc, 0.0 * scale, RBF(1.0)).round(decimals=4)
        tensor(0.1631)
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

# SPDX-License-Identifier: MIT
"""Kernels between the rows of two arrays, and the conventions met in other libraries."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._arrays.full_precision import full_precision
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


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    r"""Return :math:`\|x_i - y_j\|^2` for all pairs, by one matrix product.

    The rows are centred first: the product loses the digits that a common offset takes up. It is
    in float32 at least, under autocast too.
    """
    with full_precision(x, y) as (x, y):
        centre = y.detach().mean(0)
        x, y = x - centre, y - centre
        distances = torch.addmm((y * y).sum(1), x, y.T, alpha=-2) + (x * x).sum(1, keepdim=True)
        return distances.clamp(min=0)


SQUARED_DISTANCES["torch"] = squared_distances

# SPDX-License-Identifier: MIT
"""A radial kernel of points, for sums over blocks of pairs."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_backend._arrays.pair_sums import BLOCK_ROWS, RowSums, Sample
from numpyro_backend.kernels import RadialKernel


class _Points(NamedTuple):
    r"""Centred points, and factors with left_i · right_j = ‖x_i - y_j‖²."""

    left: Float[Array, "d+2 n"]
    right: Float[Array, "d+2 n"]
    weights: Float[Array, "1 n"]
    moments: Float[Array, "d+1 n"]


@dataclass(frozen=True)
class RadialPairs:
    r"""The kernel :math:`k = f(\|x - y\|^2)`.

    Its gradient at x is the sum of :math:`2 f' (x - y)`: row sums of the slope :math:`f'` times
    the moments (y, 1).
    """

    kernel: RadialKernel
    block_rows: int = BLOCK_ROWS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Points, _Points]:
        """Centre both samples, for the product to keep its digits, and factor the distances."""
        centre = jax.lax.stop_gradient((_mean(x) + _mean(y)) / 2)
        return _factored(x, centre), _factored(y, centre)

    def columns(self, x: _Points, derivatives: bool) -> tuple[int, ...]:
        """Count the kernel and the moments."""
        return (1, x.moments.shape[0]) if derivatives else (1,)

    def row_sums(
        self, x: _Points, y: _Points, left_out: Bool[Array, "n m"] | None, derivatives: bool
    ) -> tuple[RowSums, RowSums]:
        """Return the row sums of the kernel and of its slope."""
        product = x.left.T @ y.right
        distances, num_features = jnp.where(product < 0, 0, product), x.left.shape[0] - 2
        if not derivatives:
            value = _without(left_out, self.kernel.profile(distances, num_features))
            return (y.weights @ value.T,), (x.weights @ value,)
        value, slope = (
            _without(left_out, f) for f in self.kernel.profile_and_slope(distances, num_features)
        )
        return (
            (y.weights @ value.T, y.moments @ slope.T),
            (x.weights @ value, x.moments @ slope),
        )

    def gradient(self, x: _Points, sums: RowSums) -> tuple[tuple[Array, ...], Array]:
        """Return the gradient with respect to the points, and to their weights."""
        value, moments = sums
        pulls = x.right[:-2] * moments[-1:] - moments[:-1]
        return ((2 * x.weights * pulls).T,), value[0]


def _without(left_out: Bool[Array, "n m"] | None, pairs: Float[Array, "n m"]) -> Array:
    return pairs if left_out is None else jnp.where(left_out, 0, pairs)


def _mean(x: Sample) -> Float[Array, "1 d"]:
    """Return the weighted mean, which a masked row does not move; 0 if all are masked."""
    (points,) = x.rows
    if x.weights is None:
        return points.mean(0, keepdims=True)
    total = x.weights.sum()
    return x.weights[None] @ points / jnp.where(total > 0, total, 1)


def _factored(x: Sample, centre: Float[Array, "1 d"]) -> _Points:
    points = (x.rows[0] - centre).T
    squares = (points * points).sum(0, keepdims=True)
    ones = jnp.ones_like(squares)
    left = jnp.concatenate([-2 * points, squares, ones])
    right = jnp.concatenate([points, ones, squares])
    weights = ones if x.weights is None else x.weights[None]
    return _Points(left, right, weights, right[:-1] * weights)

# SPDX-License-Identifier: MIT
"""A radial kernel of points, for sums over blocks of pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._arrays.pair_sums import BLOCK_ELEMENTS, Gradients, Sample, Term
from pyro_infovae.kernels import RadialKernel


class _Points(NamedTuple):
    r"""Centred points, and factors with left_i · right_j = ‖x_i - y_j‖²."""

    left: Float[Tensor, "d+2 n"]
    right: Float[Tensor, "d+2 n"]
    weights: Float[Tensor, "1 n"]
    moments: Float[Tensor, "d+1 n"]


@dataclass(frozen=True)
class RadialPairs:
    r"""The kernel :math:`k = f(\|x - y\|^2)`.

    Its gradient at x is the sum of :math:`2 f' (x - y)`: row sums of the slope :math:`f'` times
    the moments (y, 1).
    """

    kernel: RadialKernel
    block_elements: int = BLOCK_ELEMENTS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Points, _Points]:
        """Centre both samples, for the product to keep its digits, and factor the distances."""
        centre = (_mean(x) + _mean(y)) / 2
        return _factored(x, centre), _factored(y, centre)

    def columns(self, x: _Points, derivatives: bool) -> int:
        """Count the kernel and the moments."""
        return 1 + len(x.moments) if derivatives else 1

    def terms(
        self, x: _Points, y: _Points, leave_out: Callable[[Tensor], None], derivatives: bool
    ) -> Iterator[Term]:
        """Yield the kernel and its slope."""
        # Clamps at zero, as clamp_ does; but vmap knows relu_.
        distances = (x.left.T @ y.right).relu_()
        num_features = len(x.left) - 2
        if not derivatives:
            value = self.kernel.profile(distances, num_features)
            leave_out(value)
            yield Term(slice(1), value, x.weights, y.weights)
            return
        value, slope = self.kernel.profile_and_slope(distances, num_features)
        leave_out(value)
        yield Term(slice(1), value, x.weights, y.weights)
        leave_out(slope)
        yield Term(slice(1, None), slope, x.moments, y.moments)

    def gradients(self, x: _Points, sums: Float[Tensor, "columns n"]) -> Gradients:
        """Return the gradient with respect to the points and to their weights."""
        points = x.right[:-2]
        return (2 * x.weights * (points * sums[-1] - sums[1:-1])).T, sums[0]


def _mean(x: Sample) -> Float[Tensor, " d"]:
    """Return the weighted mean, which a masked row does not move; 0 if all are masked."""
    (points,) = x.rows
    if x.weights is None:
        return points.mean(0)
    total = x.weights.sum()
    return x.weights @ points / torch.where(total > 0, total, 1.0)


def _factored(x: Sample, centre: Float[Tensor, " d"]) -> _Points:
    points = (x.rows[0] - centre).T
    squares = (points * points).sum(0, keepdim=True)
    ones = torch.ones_like(squares)
    left = torch.cat([-2 * points, squares, ones])
    right = torch.cat([points, ones, squares])
    if x.weights is None:
        return _Points(left, right, ones, right[:-1])
    weights = x.weights[None]
    return _Points(left, right, weights, right[:-1] * weights)

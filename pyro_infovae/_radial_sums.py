"""Row sums of a radial kernel over samples of points."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._pair_sums import BLOCK_ELEMENTS, Gradients, Sample, leave_out_, row_blocks
from pyro_infovae.kernels import RadialKernel


class _Points(NamedTuple):
    r"""Centred points, and factors with left_i · right_j = ‖x_i - y_j‖²."""

    points: Float[Tensor, "n d"]
    left: Float[Tensor, "n d+2"]
    right: Float[Tensor, "n d+2"]
    weights: Float[Tensor, "n 1"]
    moments: Float[Tensor, "n d+1"]


@dataclass(frozen=True)
class RadialSums:
    r"""The row sums of :math:`k = f(\|x - y\|^2)`, and of its slope :math:`f'` times (y, 1)."""

    kernel: RadialKernel
    block_elements: int = BLOCK_ELEMENTS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Points, _Points]:
        """Centre both samples and factor their distances."""
        centre = (_mean(x) + _mean(y)) / 2
        return _factored(x, centre), _factored(y, centre)

    def within(self, x: _Points, period: int | None, wanted: bool) -> Float[Tensor, "n columns"]:
        """Return the row sums of a sample over itself."""
        n = len(x.points)
        sums = _zeros(x, wanted)
        for rows in row_blocks(n, n, self.block_elements):
            onwards, after = slice(rows.start, n), slice(rows.stop, n)
            block = self._block(x.left[rows], x.right[onwards], period, 0, wanted)
            _add(sums, rows, block, x, onwards)
            if rows.stop < n:
                # The pairs before the diagonal mirror those after it.
                mirrored = [pairs[:, rows.stop - rows.start :].T for pairs in block]
                _add(sums, after, mirrored, x, rows)
        return torch.cat(sums, 1)

    def across(
        self, x: _Points, y: _Points, period: int | None, x_wanted: bool, y_wanted: bool
    ) -> tuple[Float[Tensor, "n columns"], Float[Tensor, "m columns"]]:
        """Return the row sums of x over y, and of y over x (zeros unless wanted)."""
        every = slice(None)
        x_sums, y_sums = _zeros(x, x_wanted), _zeros(y, y_wanted)
        for rows in row_blocks(len(x.points), len(y.points), self.block_elements):
            block = self._block(x.left[rows], y.right, period, rows.start, x_wanted or y_wanted)
            _add(x_sums, rows, block, y, every)
            if y_wanted:
                _add(y_sums, every, [pairs.T for pairs in block], x, rows)
        return torch.cat(x_sums, 1), torch.cat(y_sums, 1)

    def gradients(self, x: _Points, sums: Float[Tensor, "n columns"]) -> Gradients:
        """Return the gradient with respect to the points and to their weights."""
        pulls = x.points * sums[:, -1:] - sums[:, 1:-1]
        return 2 * x.weights * pulls, sums[:, 0]

    def _block(
        self, left: Tensor, right: Tensor, period: int | None, shift: int, with_slope: bool
    ) -> Sequence[Tensor]:
        """Return the kernel of all pairs of some rows, and its slope."""
        distances, num_features = (left @ right.T).relu_(), left.shape[1] - 2
        block: Sequence[Tensor]
        if with_slope:
            block = self.kernel.profile_and_slope(distances, num_features)
        else:
            block = [self.kernel.profile(distances, num_features)]
        for pairs in block:
            leave_out_(pairs, period, shift)
        return block


def _mean(x: Sample) -> Float[Tensor, " d"]:
    """Return the weighted mean, which a masked row does not move; 0 if all are masked."""
    (points,) = x.rows
    if x.weights is None:
        return points.mean(0)
    return x.weights @ points / x.weights.sum().clamp(min=torch.finfo(points.dtype).tiny)


def _factored(x: Sample, centre: Float[Tensor, " d"]) -> _Points:
    points = x.rows[0] - centre
    squares = (points * points).sum(1, keepdim=True)
    ones = torch.ones_like(squares)
    left = torch.cat([-2 * points, squares, ones], 1)
    right = torch.cat([points, ones, squares], 1)
    if x.weights is None:
        return _Points(points, left, right, ones, right[:, :-1])
    weights = x.weights[:, None]
    return _Points(points, left, right, weights, right[:, :-1] * weights)


def _zeros(x: _Points, wanted: bool) -> list[Tensor]:
    return [torch.zeros_like(o) for o in (x.weights, x.moments)[: 2 if wanted else 1]]


def _add(
    sums: list[Tensor], rows: slice, block: Sequence[Tensor], x: _Points, columns: slice
) -> None:
    """Add what a block's columns, which are rows of x, contribute to the sums of its rows."""
    for total, pairs, operand in zip(sums, block, (x.weights, x.moments), strict=False):
        total[rows].add_(pairs @ operand[columns])

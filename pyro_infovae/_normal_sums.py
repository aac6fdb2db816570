"""Row sums of the mean of an RBF kernel over samples of diagonal normals."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._pair_sums import BLOCK_ELEMENTS, Gradients, Sample, leave_out_, row_blocks


class _Normals(NamedTuple):
    """Features first: the sums go through them one by one."""

    loc: Float[Tensor, "d n"]
    scale: Float[Tensor, "d n"]
    variance: Float[Tensor, "d n"]
    weights: Float[Tensor, " n"]

    def select(self, rows: slice) -> "_Normals":
        return _Normals(*(a[..., rows] for a in self))


@dataclass(frozen=True)
class NormalSums:
    r"""The row sums of :math:`\bar k = E\,k(a, b)` and of its derivatives.

    With :math:`t = \ell^2 + s_a^2 + s_b^2` in each dimension,

    .. math::
        \bar k = \prod \frac{\ell}{\sqrt t} e^{-(m_a - m_b)^2 / 2t}, \qquad
        \frac{\partial \bar k}{\partial m_a} = \bar k u, \quad
        \frac{\partial \bar k}{\partial s_a^2} = \frac{\bar k}{2} (u^2 - 1/t), \quad
        u = \frac{m_b - m_a}{t}.
    """

    lengthscales: tuple[float, ...]
    block_elements: int = BLOCK_ELEMENTS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Normals, _Normals]:
        """Lay both samples out by feature."""
        return _by_feature(x), _by_feature(y)

    def within(self, x: _Normals, period: int | None, wanted: bool) -> Float[Tensor, "n columns"]:
        """Return the row sums of a sample over itself."""
        n, sums = len(x.weights), _zeros(x, wanted)
        for rows in row_blocks(n, n, self.block_elements):
            onwards, after = slice(rows.start, n), slice(rows.stop, n)
            blocks = self._blocks(x.select(rows), x.select(onwards), period, 0, wanted)
            for column, pairs, mirror in blocks:
                sums[column, rows].add_(pairs @ x.weights[onwards])
                if rows.stop < n:
                    # The pairs before the diagonal mirror those after it.
                    mirrored = pairs[:, rows.stop - rows.start :].T
                    sums[column, after].add_(mirrored @ x.weights[rows], alpha=mirror)
        return sums.T

    def across(
        self, x: _Normals, y: _Normals, period: int | None, x_wanted: bool, y_wanted: bool
    ) -> tuple[Float[Tensor, "n columns"], Float[Tensor, "m columns"]]:
        """Return the row sums of x over y, and of y over x (zeros unless wanted)."""
        wanted = x_wanted or y_wanted
        x_sums, y_sums = _zeros(x, wanted), _zeros(y, wanted)
        for rows in row_blocks(len(x.weights), len(y.weights), self.block_elements):
            blocks = self._blocks(x.select(rows), y, period, rows.start, wanted)
            for column, pairs, mirror in blocks:
                x_sums[column, rows].add_(pairs @ y.weights)
                if y_wanted:
                    y_sums[column].add_(pairs.T @ x.weights[rows], alpha=mirror)
        return x_sums.T, y_sums.T

    def gradients(self, x: _Normals, sums: Float[Tensor, "n columns"]) -> Gradients:
        """Return the gradient with respect to locations, scales and weights."""
        d, weights = len(x.loc), x.weights[:, None]
        return (
            weights * sums[:, 1 : d + 1],
            weights * x.scale.T * sums[:, d + 1 :],
            sums[:, 0],
        )

    def _blocks(
        self, x: _Normals, y: _Normals, period: int | None, shift: int, wanted: bool
    ) -> Iterator[tuple[int, Float[Tensor, "n m"], int]]:
        """Yield, for all pairs, each column's function and its sign with the two swapped."""
        d = len(x.loc)
        for lengthscale in self.lengthscales:
            mean = _mean_kernel(x, y, lengthscale)
            leave_out_(mean, period, shift)
            yield 0, mean, 1
            for j in range(d if wanted else 0):
                spread, difference = _spread_and_difference(x, y, j, lengthscale)
                slope = difference.div_(spread)
                pull = mean * slope
                yield 1 + j, pull, -1
                yield 1 + d + j, pull.mul_(slope).sub_(spread.reciprocal_().mul_(mean)), 1


def _mean_kernel(x: _Normals, y: _Normals, lengthscale: float) -> Float[Tensor, "n m"]:
    shape = len(x.weights), len(y.weights)
    exponent, ratio = x.loc.new_zeros(shape), x.loc.new_ones(shape)
    for j in range(len(x.loc)):
        spread, difference = _spread_and_difference(x, y, j, lengthscale)
        exponent.sub_(difference.mul_(difference).div_(spread), alpha=0.5)
        ratio.mul_(spread.div_(lengthscale**2))
    return exponent.exp_().mul_(ratio.rsqrt_())


def _spread_and_difference(
    x: _Normals, y: _Normals, feature: int, lengthscale: float
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    r"""Return :math:`\ell^2 + s_a^2 + s_b^2` and :math:`m_b - m_a` in one dimension."""
    spread = (x.variance[feature] + lengthscale**2)[:, None] + y.variance[feature]
    return spread, y.loc[feature] - x.loc[feature][:, None]


def _by_feature(x: Sample) -> _Normals:
    loc, scale = (a.T.contiguous() for a in x.rows)
    weights = loc.new_ones(loc.shape[1]) if x.weights is None else x.weights
    return _Normals(loc, scale, scale.square(), weights)


def _zeros(x: _Normals, wanted: bool) -> Float[Tensor, "columns n"]:
    """Return empty sums: the kernel's and, if wanted, those of both derivatives per feature."""
    d, n = x.loc.shape
    return x.loc.new_zeros(1 + 2 * d if wanted else 1, n)

# SPDX-License-Identifier: MIT
"""The mean of an RBF kernel under diagonal normals, for sums over blocks of pairs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._arrays.pair_sums import BLOCK_ELEMENTS, Term, weighted_mmd
from pyro_infovae._core.mmd import Periods, Sample, coefficients


class _Normals(NamedTuple):
    """Features first: the sums go through them one by one."""

    loc: Float[Tensor, "d n"]
    scale: Float[Tensor, "d n"]
    variance: Float[Tensor, "d n"]
    weights: Float[Tensor, "1 n"]


@dataclass(frozen=True)
class NormalPairs:
    r"""The kernel's mean :math:`\bar k = E\,k(a, b)`.

    With :math:`t = \ell^2 + s_a^2 + s_b^2` in each dimension,

    .. math::
        \bar k = \prod \frac{\ell}{\sqrt t} e^{-(m_a - m_b)^2 / 2t}, \qquad
        \frac{\partial \bar k}{\partial m_a} = \bar k u, \quad
        \frac{\partial \bar k}{\partial s_a^2} = \frac{\bar k}{2} (u^2 - 1/t), \quad
        u = \frac{m_b - m_a}{t}.
    """

    lengthscales: tuple[float, ...]
    block_elements: int = BLOCK_ELEMENTS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Normals, _Normals, _Normals]:
        """Lay both samples out by feature."""
        y_side = _by_feature(y)
        return _by_feature(x), y_side, y_side

    def columns(self, x: _Normals, derivatives: bool) -> int:
        """Count the kernel and, for each feature, two derivatives."""
        return 1 + 2 * len(x.loc) if derivatives else 1

    def terms(
        self, x: _Normals, y: _Normals, weigh: Callable[[Tensor], None], derivatives: bool
    ) -> Iterator[Term]:
        """Yield the kernel's mean and its derivatives, feature by feature."""
        d = len(x.loc)
        for lengthscale in self.lengthscales:
            mean = _mean_kernel(x, y, lengthscale)
            weigh(mean)
            yield _term(0, mean, x, y)
            for j in range(d if derivatives else 0):
                spread, difference = _spread_and_difference(x, y, j, lengthscale)
                slope = difference.div_(spread)
                pull = mean * slope
                yield _term(1 + j, pull, x, y, sign=-1)
                push = pull.mul_(slope).sub_(spread.reciprocal_().mul_(mean))
                yield _term(1 + d + j, push, x, y)

    def gradients(self, x: _Normals, sums: Float[Tensor, "columns n"]) -> Sequence[Tensor]:
        """Return the gradient with respect to locations, scales and weights."""
        d = len(x.loc)
        return (
            (x.weights * sums[1 : d + 1]).T,
            (x.weights * x.scale * sums[d + 1 :]).T,
            sums[0],
        )


def _term(column: int, pairs: Tensor, x: _Normals, y: _Normals, sign: int = 1) -> Term:
    return Term(slice(column, column + 1), pairs, x.weights, y.weights, sign)


def _mean_kernel(x: _Normals, y: _Normals, lengthscale: float) -> Float[Tensor, "n m"]:
    shape = x.loc.shape[1], y.loc.shape[1]
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
    weights = torch.ones_like(loc[0]) if x.weights is None else x.weights
    return _Normals(loc, scale, scale * scale, weights[None])


def average_normal(
    lengthscales: tuple[float, ...], x: Sample, y: Sample, periods: Periods
) -> Float[Tensor, ""]:
    """The estimate by sums of RBF kernels of diagonal normals."""
    return weighted_mmd(NormalPairs(lengthscales), x, y, periods, coefficients(x, y, periods))

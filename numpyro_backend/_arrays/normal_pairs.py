# SPDX-License-Identifier: MIT
"""The mean of an RBF kernel under diagonal normals, for sums over blocks of pairs."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_backend._arrays.pair_sums import BLOCK_ROWS, RowSums, SameDatum, average, weighed
from pyro_infovae._core.mmd import Periods, Sample


class _Normals(NamedTuple):
    """Features first: the sums go through them one by one."""

    loc: Float[Array, "d n"]
    scale: Float[Array, "d n"]
    variance: Float[Array, "d n"]
    weights: Float[Array, "1 n"]


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
    block_rows: int = BLOCK_ROWS

    def prepare(self, x: Sample, y: Sample) -> tuple[_Normals, _Normals, _Normals]:
        """Lay both samples out by feature."""
        y_side = _by_feature(y)
        return _by_feature(x), y_side, y_side

    def columns(self, x: _Normals, derivatives: bool) -> tuple[int, ...]:
        """Count the kernel and, for each feature, two derivatives."""
        d = x.loc.shape[0]
        return (1, d, d) if derivatives else (1,)

    def row_sums(
        self, x: _Normals, y: _Normals, same: SameDatum | None, derivatives: bool
    ) -> tuple[RowSums, RowSums]:
        """Return the row sums of the kernel's mean and of its derivatives."""
        each = [
            _row_sums(x, y, lengthscale, same, derivatives) for lengthscale in self.lengthscales
        ]
        return jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *each)

    def gradient(self, x: _Normals, sums: RowSums) -> tuple[tuple[Array, ...], Array]:
        """Return the gradient with respect to locations and scales, and to weights."""
        value, loc, variance = sums
        return ((x.weights * loc).T, (x.weights * x.scale * variance).T), value[0]


def _row_sums(
    x: _Normals,
    y: _Normals,
    lengthscale: float,
    same: SameDatum | None,
    derivatives: bool,
) -> tuple[RowSums, RowSums]:
    mean = weighed(same, _mean_kernel(x, y, lengthscale))
    v, w = x.weights[0], y.weights[0]
    if not derivatives:
        return ((mean @ w)[None],), ((v @ mean)[None],)

    def of_feature(_: None, feature: tuple[Array, ...]) -> tuple[None, tuple[Array, ...]]:
        spread, difference = _spread_and_difference(feature, lengthscale)
        slope = difference / spread
        pull = mean * slope
        push = pull * slope - mean / spread
        return None, (pull @ w, push @ w, -(v @ pull), v @ push)

    features = (x.loc, x.variance, y.loc, y.variance)
    _, (x_loc, x_variance, y_loc, y_variance) = jax.lax.scan(of_feature, None, features)
    return ((mean @ w)[None], x_loc, x_variance), ((v @ mean)[None], y_loc, y_variance)


def _mean_kernel(x: _Normals, y: _Normals, lengthscale: float) -> Float[Array, "n m"]:
    def times_feature(
        carry: tuple[Array, Array], feature: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        exponent, ratio = carry
        spread, difference = _spread_and_difference(feature, lengthscale)
        exponent = exponent - difference * difference / spread / 2
        return (exponent, ratio * (spread / lengthscale**2)), None

    shape, dtype = (x.loc.shape[1], y.loc.shape[1]), x.loc.dtype
    start = jnp.zeros(shape, dtype), jnp.ones(shape, dtype)
    features = (x.loc, x.variance, y.loc, y.variance)
    (exponent, ratio), _ = jax.lax.scan(times_feature, start, features)
    return jnp.exp(exponent) * jax.lax.rsqrt(ratio)


def _spread_and_difference(
    feature: tuple[Array, ...], lengthscale: float
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    r"""Return :math:`\ell^2 + s_a^2 + s_b^2` and :math:`m_b - m_a` in one dimension."""
    x_loc, x_variance, y_loc, y_variance = feature
    spread = (x_variance + lengthscale**2)[:, None] + y_variance[None]
    return spread, y_loc[None] - x_loc[:, None]


def _by_feature(x: Sample) -> _Normals:
    loc, scale = (a.T for a in x.rows)
    weights = jnp.ones_like(loc[:1]) if x.weights is None else x.weights[None]
    return _Normals(loc, scale, scale * scale, weights)


def average_normal(
    lengthscales: tuple[float, ...], x: Sample, y: Sample, periods: Periods
) -> Float[Array, ""]:
    """The estimate by sums of RBF kernels of diagonal normals."""
    return average(NormalPairs(lengthscales), x, y, periods)

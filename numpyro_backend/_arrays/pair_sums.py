# SPDX-License-Identifier: MIT
r"""The maximum mean discrepancy with its gradient, summed over blocks of pairs.

A *row sum* is :math:`\sum_j w_j f(x_i, y_j)`: one number for each row i, from a function of pairs
and the weights of the rows j. The kernel's row sums give the value, and those of its derivatives
the gradient. Both are worked out while a block of pairs is at hand, so that no more than one block
exists at a time; backward only scales the gradient.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pyro_infovae._core.kernels import RadialKernel
from pyro_infovae._core.mmd import Periods, Sample, coefficients

BLOCK_ROWS = 2**10
"""Rows on either side of a block of pairs: few megabytes, yet few blocks."""

Side = Any
"""A kernel's own NamedTuple of arrays (features, n): a sample as its blocks want it."""

RowSums = tuple[Float[Array, "_ n"], ...]
"""The kernel's row sums (1, n) and, if asked for, those of its derivatives."""


Coefficients = tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]


class SameDatum(NamedTuple):
    """Which pairs of a block are of the same datum, and the factor on them."""

    pairs: Bool[Array, "n m"]
    factor: float


class PairKernel(Protocol):
    """A kernel that can be summed over blocks of pairs."""

    @property
    def block_rows(self) -> int:
        """The rows on either side of a block, at most."""

    def prepare(self, x: Sample, y: Sample) -> tuple[Side, Side, Side]:
        """Return x and y as sides for pairs within each, and y for the pairs with x.

        Rows of zeros added to a side count for nothing.
        """

    def columns(self, x: Side, derivatives: bool) -> tuple[int, ...]:
        """Return the number of row sums: the kernel's and, if asked for, its derivatives'."""

    def row_sums(
        self, x: Side, y: Side, same: SameDatum | None, derivatives: bool
    ) -> tuple[RowSums, RowSums]:
        """Return the row sums of x over y and of y over x."""

    def gradient(self, x: Side, sums: RowSums) -> tuple[tuple[Array, ...], Array]:
        """Return the gradient with respect to a sample's rows and weights, given its row sums."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def weighted_mmd(
    kernel: PairKernel, x: Sample, y: Sample, periods: Periods, coefficients: Coefficients
) -> Float[Array, ""]:
    r"""Return :math:`a S_{xx} + b S_{yy} + c S_{xy}`, where S sums over the weighted pairs.

    Args:
        kernel: the kernel.
        x: one sample.
        y: the other.
        periods: the pairs that each sum weighs apart, or leaves out.
        coefficients: a, b and c.
    """
    x_side, y_side, y_across = kernel.prepare(x, y)
    (xx,) = _sums_within(kernel, x_side, periods.xx, periods.factor, derivatives=False)
    (yy,) = _sums_within(kernel, y_side, periods.yy, periods.factor, derivatives=False)
    (xy,), _ = _sums_across(kernel, x_side, y_across, periods.xy, periods.factor, derivatives=False)
    a, b, c = coefficients
    return a * _total(xx, x) + b * _total(yy, y) + c * _total(xy, x)


def _forward(
    kernel: PairKernel, x: Sample, y: Sample, periods: Periods, coefficients: Coefficients
) -> tuple[Array, tuple[Sample, Sample, Coefficients]]:
    x_side, y_side, y_across = kernel.prepare(x, y)
    xx = _sums_within(kernel, x_side, periods.xx, periods.factor, derivatives=True)
    yy = _sums_within(kernel, y_side, periods.yy, periods.factor, derivatives=True)
    xy, yx = _sums_across(kernel, x_side, y_across, periods.xy, periods.factor, derivatives=True)

    def gradient(sample: Sample, *parts: tuple[Side, Array, RowSums]) -> Sample:
        slopes = [kernel.gradient(side, tuple(w * s for s in sums)) for side, w, sums in parts]
        rows, weights = jax.tree.map(lambda *slope: sum(slope), *slopes)
        return Sample(rows, None if sample.weights is None else weights)

    a, b, c = coefficients
    totals = _total(xx[0], x), _total(yy[0], y), _total(xy[0], x)
    value = a * totals[0] + b * totals[1] + c * totals[2]
    of_x = gradient(x, (x_side, 2 * a, xx), (x_side, c, xy))
    of_y = gradient(y, (y_side, 2 * b, yy), (y_across, c, yx))
    return value, (of_x, of_y, totals)


def _backward(
    kernel: PairKernel, periods: Periods, gradients: tuple[Any, ...], grad_value: Array
) -> tuple[Any, ...]:
    return jax.tree.map(lambda g: grad_value * g, gradients)


weighted_mmd.defvjp(_forward, _backward)


def _sums_within(
    kernel: PairKernel, x: Side, period: int | None, factor: float, derivatives: bool
) -> RowSums:
    """Return the row sums of a sample over itself."""
    n = x[0].shape[1]
    if n <= kernel.block_rows:
        return kernel.row_sums(x, x, _same_datum(n, n, 0, period, factor), derivatives)[0]
    blocks = _cut(x, kernel.block_rows)
    count, _, size = blocks[0].shape

    def add(sums: RowSums, block: tuple[Array, Array]) -> tuple[RowSums, None]:
        i, j = block
        same = _same_datum(size, size, (i - j) * size, period, factor)
        of_rows, of_columns = kernel.row_sums(_take(blocks, i), _take(blocks, j), same, derivatives)
        # The pairs before the diagonal mirror those after it.
        mirrored = tuple(jnp.where(i == j, 0, sums) for sums in of_columns)
        return _add(_add(sums, i, of_rows), j, mirrored), None

    zeros = _zeros(kernel, x, blocks, derivatives)
    sums, _ = jax.lax.scan(add, zeros, jnp.triu_indices(count))
    return _join(sums, x)


def _sums_across(
    kernel: PairKernel, x: Side, y: Side, period: int | None, factor: float, derivatives: bool
) -> tuple[RowSums, RowSums]:
    """Return the row sums of x over y, and of y over x."""
    n, m = x[0].shape[1], y[0].shape[1]
    if max(n, m) <= kernel.block_rows:
        return kernel.row_sums(x, y, _same_datum(n, m, 0, period, factor), derivatives)
    x_blocks, y_blocks = _cut(x, kernel.block_rows), _cut(y, kernel.block_rows)
    (x_count, _, x_size), (y_count, _, y_size) = x_blocks[0].shape, y_blocks[0].shape

    def add(
        sums: tuple[RowSums, RowSums], block: tuple[Array, Array]
    ) -> tuple[tuple[RowSums, RowSums], None]:
        i, j = block
        same = _same_datum(x_size, y_size, i * x_size - j * y_size, period, factor)
        of_x, of_y = kernel.row_sums(_take(x_blocks, i), _take(y_blocks, j), same, derivatives)
        return (_add(sums[0], i, of_x), _add(sums[1], j, of_y)), None

    zeros = _zeros(kernel, x, x_blocks, derivatives), _zeros(kernel, y, y_blocks, derivatives)
    i, j = jnp.indices((x_count, y_count)).reshape(2, -1)
    (x_sums, y_sums), _ = jax.lax.scan(add, zeros, (i, j))
    return _join(x_sums, x), _join(y_sums, y)


def _cut(side: Side, block_rows: int) -> Side:
    """Cut a side's arrays (features, n) into blocks (count, features, size), filled with zeros."""
    size = min(block_rows, side[0].shape[1])

    def cut(a: Array) -> Array:
        filled = jnp.pad(a, ((0, 0), (0, -a.shape[1] % size)))
        return filled.reshape(a.shape[0], -1, size).swapaxes(0, 1)

    return jax.tree.map(cut, side)


def _join(sums: RowSums, side: Side) -> RowSums:
    """Undo the cut for row sums (count, columns, size)."""
    n = side[0].shape[1]
    return tuple(s.swapaxes(0, 1).reshape(s.shape[1], -1)[:, :n] for s in sums)


def _take(blocks: Side, i: Array) -> Side:
    return jax.tree.map(lambda a: a[i], blocks)


def _zeros(kernel: PairKernel, side: Side, blocks: Side, derivatives: bool) -> RowSums:
    count, _, size = blocks[0].shape
    columns = kernel.columns(side, derivatives)
    return tuple(jnp.zeros((count, c, size), blocks[0].dtype) for c in columns)


def _add(sums: RowSums, i: Array, terms: RowSums) -> RowSums:
    return tuple(s.at[i].add(t) for s, t in zip(sums, terms, strict=True))


def _same_datum(
    n: int, m: int, shift: Array | int, period: int | None, factor: float
) -> SameDatum | None:
    """Return where ``(i + shift) % period == j % period``, and the factor on those pairs."""
    if period is None:
        return None
    rows, columns = (jnp.arange(n) + shift) % period, jnp.arange(m) % period
    return SameDatum(rows[:, None] == columns[None], factor)


def weighed(same: SameDatum | None, pairs: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Multiply the pairs of the same datum by their factor; 0 leaves out what is not finite too."""
    if same is None:
        return pairs
    return jnp.where(same.pairs, same.factor * pairs if same.factor else 0, pairs)


def _total(sums: Float[Array, "1 n"], sample: Sample) -> Float[Array, ""]:
    return sums.sum() if sample.weights is None else (sums[0] * sample.weights).sum()


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

    def prepare(self, x: Sample, y: Sample) -> tuple[_Points, _Points, _Points]:
        """Centre the samples, for the product to keep its digits, and factor the distances.

        Within a sample the centre is its own mean: one that x and y share may be far from both.
        """
        x_mean, y_mean = (jax.lax.stop_gradient(_mean(sample)) for sample in (x, y))
        return _factored(x, x_mean), _factored(y, y_mean), _factored(y, x_mean)

    def columns(self, x: _Points, derivatives: bool) -> tuple[int, ...]:
        """Count the kernel and the moments."""
        return (1, x.moments.shape[0]) if derivatives else (1,)

    def row_sums(
        self, x: _Points, y: _Points, same: SameDatum | None, derivatives: bool
    ) -> tuple[RowSums, RowSums]:
        """Return the row sums of the kernel and of its slope."""
        product = x.left.T @ y.right
        distances, num_features = jnp.where(product < 0, 0, product), x.left.shape[0] - 2
        if not derivatives:
            value = weighed(same, self.kernel.profile(distances, num_features))
            return (y.weights @ value.T,), (x.weights @ value,)
        value, slope = (
            weighed(same, f) for f in self.kernel.profile_and_slope(distances, num_features)
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


def average_radial(
    kernel: RadialKernel, x: Sample, y: Sample, periods: Periods
) -> Float[Array, ""]:
    """The estimate by a radial kernel of points."""
    return average(RadialPairs(kernel), x, y, periods)


def average(kernel: PairKernel, x: Sample, y: Sample, periods: Periods) -> Float[Array, ""]:
    """The estimate by a kernel that can be summed."""
    return weighted_mmd(kernel, x, y, periods, as_arrays(coefficients(x, y, periods), x))


def as_arrays(coefficients: tuple[Array | float, ...], x: Sample) -> Coefficients:
    """The coefficients in the dtype of the rows, as JAX's gradients of them are."""
    a, b, c = (
        c if isinstance(c, Array) else jnp.full_like(x.rows[0], c, shape=()) for c in coefficients
    )
    return a, b, c

# SPDX-License-Identifier: MIT
"""What the estimators of the squared maximum mean discrepancy share: checks, pairs and averages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Float

from pyro_infovae._core.arrays import Array, cast, namespace, raised
from pyro_infovae._core.kernels import Kernel, RadialKernel, rbf_lengthscales

Estimator = Literal["unbiased", "biased", "features"]

MMD_SQUARED = r"""
    .. math::
        \mathrm{MMD}^2 = \langle k(x_i, x_j) \rangle + \langle k(y_i, y_j) \rangle
        - 2 \langle k(x_i, y_j) \rangle

    where :math:`\langle \cdot \rangle` averages over pairs, each weighted by the product of its
    rows' weights. The biased estimator (a V-statistic, never negative) takes all pairs. The
    unbiased one (a U-statistic, which may be slightly negative) leaves out the pairs of a row with
    itself; and, given ``batch_size``, all pairs of rows of the same datum, in the cross term too,
    for those are not independent. Where a term has no pair of positive weight, the result is 0.

    For a radial kernel the pairs are summed in blocks, and the gradient is worked out beside the
    value: memory grows with n + m, not with n m. Any other kernel takes the whole matrix and plain
    differentiation. In torch, rows in half precision are raised to float32, autocast is suspended,
    for the result is a small difference of averages, and that of a radial kernel can be
    differentiated once.

    With ``estimator="features"`` the same pairs are averaged as in the unbiased one, by random
    frequencies of the kernel's spectrum, :math:`k(x, y) = E_\omega \cos \omega \cdot (x - y)`. The
    mean over them is the unbiased estimate, in a time and a memory that grow with n + m. They are
    drawn anew in every call, orthogonal to one another in blocks of d, for an RBF, an IMQ or a sum
    of them. Where ``y_scale`` is given, the rows of y are normals :math:`N(m, s^2)`, which are not
    sampled: their characteristic function is :math:`e^{i \omega \cdot m - \omega^2 \cdot s^2 / 2}`.
    A single row of them is the law of y itself, of which any two draws are independent.

    Args:
        x: rows of one sample.
        y: rows of the other.
        kernel: a radial kernel, or any function (x, y) -> matrix (n, m).
        estimator: ``"unbiased"``, ``"biased"`` or ``"features"``.
        x_weights: nonnegative weights of the rows of x, or a mask; what a row of weight 0 holds,
            be it nan, makes no difference.
        y_weights: the same for y.
        batch_size: rows are several draws of ``batch_size`` data, row r being a draw for datum
            ``r % batch_size``, in x and y alike. By default every row is a datum of its own.
        y_scale: for features, the scales of the diagonal normals whose locations are y.
        num_features: for features, the number of frequencies.

    Returns:
        A scalar.

    Raises:
        ValueError: if shapes disagree, rows are too few, the estimator is unknown, or the kernel
            has no known spectrum.

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola. A Kernel Two-Sample Test. JMLR 13, 2012.
        Yu, Suresh, Choromanski, Holtmann-Rice, Kumar. Orthogonal Random Features. arXiv 1610.09072.
"""

MMD_SQUARED_NORMAL = r"""
    Row i of x is drawn from :math:`N(m_i, \mathrm{diag}(s_i^2))`, and so for y. Under an RBF kernel
    the mean of a pair of different rows has a closed form,

    .. math::
        E\,k(a, b) = \prod_{\text{features}} \sqrt{\frac{\ell^2}{\ell^2 + s_a^2 + s_b^2}}
        \exp\left(-\frac{(m_a - m_b)^2}{2 (\ell^2 + s_a^2 + s_b^2)}\right)

    and the same pairs are left out as in :func:`mmd_squared` with ``estimator="unbiased"``, in the
    same precision. There is no sampling noise, at the price of one pass over the pairs per feature.
    Memory grows with n + m; in torch the result can be differentiated once.

    That is the discrepancy of infinitely many data, of which the rows are some: it may be slightly
    negative. With ``num_data`` it is that of the N data at hand, whose aggregates are mixtures of N
    components each. The pairs of a datum with an independent draw of itself then have the weight
    1/N, the others (N - 1)/N. Given all N data, the result is exact and never negative, but for
    rounding; given some, it is unbiased.

    Args:
        x_loc: locations of the rows of x.
        x_scale: their scales, nonnegative: 0 is a point.
        y_loc: locations of the rows of y.
        y_scale: their scales.
        kernel: an RBF kernel or a sum of them.
        x_weights: as in :func:`mmd_squared`.
        y_weights: as in :func:`mmd_squared`.
        batch_size: as in :func:`mmd_squared`; with ``num_data``, the rows of x by default.
        num_data: N, the size of the data set; None for infinitely many data.

    Returns:
        A scalar.

    Raises:
        ValueError: if shapes disagree, rows are too few, ``num_data`` is below ``batch_size``, or
            the kernel has no closed form.
"""


class Sample(NamedTuple):
    """Rows, described by one or more arrays (n, d), and their weights; None for ones."""

    rows: tuple[Float[Array, "n d"], ...]
    weights: Float[Array, " n"] | None

    @classmethod
    def of(cls, rows: tuple[Float[Array, "n d"], ...], weights: Array | None) -> Sample:
        """The sample with zeros for what is not finite in masked rows: 0 times nan is nan."""
        if weights is None:
            return cls(rows, None)
        xp, masked = namespace(*rows, weights), (weights == 0)[:, None]
        finite = tuple(xp.where(masked & ~xp.isfinite(a), 0.0, a) for a in rows)
        return cls(finite, cast(weights, rows[0].dtype))


class Periods(NamedTuple):
    """The pairs of a datum with itself in each sum, ``i % period == j % period``; None for none.

    Attributes:
        xx: the period within x.
        yy: the period within y.
        xy: the period across.
        factor: the weight of those pairs against the others; 0 leaves them out.
    """

    xx: int | None = None
    yy: int | None = None
    xy: int | None = None
    factor: float = 0.0

    @classmethod
    def unbiased(cls, x: Sample, y: Sample, batch_size: int | None) -> Periods:
        """The pairs that the unbiased estimator leaves out."""
        if batch_size is None:
            return cls(xx=len(x.rows[0]), yy=len(y.rows[0]))
        return cls(xx=batch_size, yy=batch_size, xy=batch_size)

    @classmethod
    def of_data_set(cls, batch_size: int, num_data: int) -> Periods:
        """The pairs whose share in a minibatch is made that in the data set, 1 / num_data."""
        factor = (batch_size - 1) / (num_data - 1) if batch_size < num_data else 1.0
        return cls(batch_size, batch_size, batch_size, factor)


class PairSums(NamedTuple):
    """How a half averages kernels over pairs of rows.

    Attributes:
        in_full_precision: suspends lower precision where an array is.
        radial: the estimate by a radial kernel of points.
        normal: the estimate by sums of RBF kernels of diagonal normals.
        features: the estimate by random frequencies.
    """

    in_full_precision: Callable[[Array], AbstractContextManager[object]]
    radial: Callable[[RadialKernel, Sample, Sample, Periods], Array]
    normal: Callable[[tuple[float, ...], Sample, Sample, Periods], Array]
    features: Callable[[Any, Sample, Sample, Periods], Array]


def estimate_mmd(
    sums: PairSums,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    kernel: Kernel,
    *,
    estimator: str,
    x_weights: Float[Array, " n"] | None,
    y_weights: Float[Array, " m"] | None,
    batch_size: int | None,
) -> Float[Array, ""]:
    """What ``mmd_squared`` of either half returns."""
    check_estimator(estimator)
    unbiased = estimator == "unbiased"
    check_samples(x, y, x_weights, y_weights, batch_size, fewest=2 if unbiased else 1)
    with sums.in_full_precision(x):
        of_x, of_y = Sample.of((raised(x),), x_weights), Sample.of((raised(y),), y_weights)
        periods = Periods.unbiased(of_x, of_y, batch_size) if unbiased else Periods()
        if isinstance(kernel, RadialKernel):
            return sums.radial(kernel, of_x, of_y, periods)
        return dense_mmd(kernel, of_x, of_y, periods)


def estimate_mmd_of_normals(
    sums: PairSums,
    x: tuple[Float[Array, "n d"], Float[Array, "n d"]],
    y: tuple[Float[Array, "m d"], Float[Array, "m d"]],
    kernel: Kernel,
    *,
    x_weights: Float[Array, " n"] | None,
    y_weights: Float[Array, " m"] | None,
    batch_size: int | None,
    num_data: int | None,
) -> Float[Array, ""]:
    """What ``mmd_squared_normal`` of either half returns, of locations with their scales."""
    check_scales(*x, *y)
    if num_data is not None:
        batch_size = len(x[0]) if batch_size is None else batch_size
        check_num_data(num_data, batch_size)
    fewest = 2 if num_data is None else 1
    check_samples(x[0], y[0], x_weights, y_weights, batch_size, fewest=fewest)
    lengthscales = rbf_lengthscales(kernel, x[0].shape[1])
    with sums.in_full_precision(x[0]):
        of_x = Sample.of((raised(x[0]), raised(x[1])), x_weights)
        of_y = Sample.of((raised(y[0]), raised(y[1])), y_weights)
        if num_data is None or batch_size is None:
            periods = Periods.unbiased(of_x, of_y, batch_size)
        else:
            periods = Periods.of_data_set(batch_size, num_data)
        return sums.normal(lengthscales, of_x, of_y, periods)


def coefficients(x: Sample, y: Sample, periods: Periods) -> tuple[Float[Array, ""] | float, ...]:
    """Return what turns the sums xx, yy and xy into averages, with their signs."""
    first, n, m, lacking = x.rows[0], len(x.rows[0]), len(y.rows[0]), 1 - periods.factor
    if x.weights is None and y.weights is None:
        counts = (n, n, periods.xx), (m, m, periods.yy), (n, m, periods.xy)
        n_xx, n_yy, n_xy = (i * j - (i * j // p * lacking if p else 0) for i, j, p in counts)
        if min(n_xx, n_yy, n_xy) == 0:
            return 0.0, 0.0, 0.0
        return 1 / n_xx, 1 / n_yy, -2 / n_xy
    xp = namespace(first, x.weights, y.weights)
    v, w = (xp.ones_like(s.rows[0][:, 0]) if s.weights is None else s.weights for s in (x, y))
    totals = (
        _pair_weight(v, v, periods.xx, periods.factor),
        _pair_weight(w, w, periods.yy, periods.factor),
        _pair_weight(v, w, periods.xy, periods.factor),
    )
    enough = (totals[0] > 0) & (totals[1] > 0) & (totals[2] > 0)
    # The inner where keeps the gradient of the branch not taken finite.
    xx, yy, xy = (xp.where(enough, 1 / xp.where(enough, t, 1.0), 0.0) for t in totals)
    return xx, yy, -2 * xy


def dense_mmd(kernel: Kernel, x: Sample, y: Sample, periods: Periods) -> Float[Array, ""]:
    """Return the estimate from the whole matrices of pairs, for any kernel."""
    a, b, c = coefficients(x, y, periods)
    return (
        a * _dense_sum(kernel, x, x, periods.xx)
        + b * _dense_sum(kernel, y, y, periods.yy)
        + c * _dense_sum(kernel, x, y, periods.xy)
    )


def check_estimator(estimator: str) -> None:
    """Check the name of an estimator from draws.

    Raises:
        ValueError: if there is no estimator of that name.
    """
    if estimator not in get_args(Estimator):
        hint = " Use mmd_squared_normal for the closed form." if estimator == "closed_form" else ""
        raise ValueError(
            f"Expected estimator 'unbiased', 'biased' or 'features'; got {estimator!r}.{hint}"
        )


def check_samples(
    x: Array,
    y: Array,
    x_weights: Array | None,
    y_weights: Array | None,
    batch_size: int | None,
    *,
    fewest: int = 2,
) -> None:
    """Check the shapes of two samples.

    Raises:
        ValueError: if shapes disagree, or rows are too few.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Expected x and y of shapes (n, d) and (m, d); "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    for name, rows, weights in (("x", x, x_weights), ("y", y, y_weights)):
        n = len(rows)
        if n < fewest:
            raise ValueError(f"Expected at least {fewest} rows of {name}; got {n}.")
        if weights is not None and weights.shape != (n,):
            raise ValueError(f"Expected {name}_weights of shape {(n,)}; got {tuple(weights.shape)}")
        if batch_size is not None and (batch_size < fewest or n % batch_size):
            raise ValueError(
                f"Expected batch_size of at least {fewest} that divides the {n} rows of {name}; "
                f"got {batch_size}."
            )


def check_num_data(num_data: int, batch_size: int) -> None:
    """Check the size of a data set.

    Raises:
        ValueError: if the minibatch holds more.
    """
    if num_data < batch_size:
        raise ValueError(f"Expected num_data of at least batch_size={batch_size}; got {num_data}")


def check_scales(x_loc: Array, x_scale: Array, y_loc: Array, y_scale: Array) -> None:
    """Check that scales have the shapes of their locations.

    Raises:
        ValueError: if they have not.
    """
    for side, loc, scale in (("x", x_loc, x_scale), ("y", y_loc, y_scale)):
        if loc.shape != scale.shape:
            raise ValueError(
                f"Expected {side}_scale of {side}_loc's shape {tuple(loc.shape)}; "
                f"got {tuple(scale.shape)}"
            )


def _pair_weight(
    v: Float[Array, " n"], w: Float[Array, " m"], period: int | None, factor: float
) -> Float[Array, ""]:
    """Return the weight of all pairs; exactly 0 where all that have one are left out."""
    if period is None:
        return v.sum() * w.sum()
    v_data, w_data = v.reshape(-1, period).sum(0), w.reshape(-1, period).sum(0)
    return (v_data * (w_data.sum() - w_data)).sum() + factor * (v_data * w_data).sum()


def _dense_sum(kernel: Kernel, x: Sample, y: Sample, period: int | None) -> Float[Array, ""]:
    n, m = len(x.rows[0]), len(y.rows[0])
    pairs = kernel(x.rows[0], y.rows[0])
    if pairs.shape != (n, m):
        raise ValueError(f"Expected kernel(x, y) of shape {(n, m)}; got {tuple(pairs.shape)}")
    if x.weights is not None:
        pairs = x.weights[:, None] * pairs
    if y.weights is not None:
        pairs = pairs * y.weights[None]
    if period is None:
        return pairs.sum()
    by_datum = pairs.reshape(n // period, period, m // period, period)
    return pairs.sum() - namespace(pairs).diagonal(by_datum, 0, 1, 3).sum()

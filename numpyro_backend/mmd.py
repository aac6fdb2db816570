# SPDX-License-Identifier: MIT
"""Estimators of the squared maximum mean discrepancy between two sets of rows."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_backend._arrays.normal_pairs import NormalPairs
from numpyro_backend._arrays.pair_sums import Coefficients, Periods, Sample, weighted_mmd
from numpyro_backend._arrays.radial_pairs import RadialPairs
from numpyro_backend.kernels import Kernel, RadialKernel, rbf_lengthscales

Estimator = Literal["unbiased", "biased"]


def mmd_squared(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    kernel: Kernel,
    *,
    estimator: Estimator = "unbiased",
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
    num_data: int | None = None,
) -> Float[Array, ""]:
    r"""Estimate the squared maximum mean discrepancy between the laws of two sets of rows.

    .. math::
        \mathrm{MMD}^2 = \langle k(x_i, x_j) \rangle + \langle k(y_i, y_j) \rangle
        - 2 \langle k(x_i, y_j) \rangle

    where :math:`\langle \cdot \rangle` averages over pairs, each weighted by the product of its
    rows' weights. The biased estimator (a V-statistic, never negative) takes all pairs. The
    unbiased one (a U-statistic, which may be slightly negative) leaves out the pairs of a row with
    itself; and, given ``num_data``, all pairs of rows of the same datum, in the cross term too,
    for those are not independent. Where a term has no pair of positive weight, the result is 0.

    For a :class:`~numpyro_backend.kernels.RadialKernel` the pairs are summed in blocks, and the
    gradient is worked out beside the value: memory grows with n + m, not with n m. Any other kernel
    takes the whole matrix and plain differentiation.

    Args:
        x: rows of one sample.
        y: rows of the other.
        kernel: a radial kernel, or any function (x, y) -> matrix (n, m).
        estimator: ``"unbiased"`` or ``"biased"``.
        x_weights: nonnegative weights of the rows of x, or a mask; what a row of weight 0 holds,
            be it nan, makes no difference.
        y_weights: the same for y.
        num_data: rows are several draws of ``num_data`` data, row r being a draw for datum
            ``r % num_data``, in x and y alike. By default every row is a datum of its own.

    Returns:
        A scalar array.

    Raises:
        ValueError: if shapes disagree, rows are too few, or the estimator is unknown.

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola. A Kernel Two-Sample Test. JMLR 13, 2012.

    Example:
        >>> from numpyro_backend.kernels import RBF
        >>> x = jnp.array([[0.0], [1.0]])
        >>> mmd_squared(x, x + 5.0, RBF(0.5)).round(4)
        Array(0.2707, dtype=float32)
        >>> mmd_squared(x, x, RBF(0.5), estimator="biased")
        Array(0., dtype=float32)
    """
    if estimator not in get_args(Estimator):
        raise ValueError(_unknown_estimator(estimator))
    _check_samples(x, y, x_weights, y_weights, num_data, fewest=2 if estimator == "unbiased" else 1)
    sample_x, sample_y = _sample((x,), x_weights), _sample((y,), y_weights)
    periods = _periods(sample_x, sample_y, num_data) if estimator == "unbiased" else Periods()
    coefficients = _coefficients(sample_x, sample_y, periods)
    if isinstance(kernel, RadialKernel):
        return weighted_mmd(RadialPairs(kernel), sample_x, sample_y, periods, coefficients)
    a, b, c = coefficients
    return (
        a * _dense_sum(kernel, sample_x, sample_x, periods.xx)
        + b * _dense_sum(kernel, sample_y, sample_y, periods.yy)
        + c * _dense_sum(kernel, sample_x, sample_y, periods.xy)
    )


def mmd_squared_normal(
    x_loc: Float[Array, "n d"],
    x_scale: Float[Array, "n d"],
    y_loc: Float[Array, "m d"],
    y_scale: Float[Array, "m d"],
    kernel: Kernel,
    *,
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
    num_data: int | None = None,
) -> Float[Array, ""]:
    r"""Return the mean of the unbiased estimator over draws from diagonal normals.

    Row i of x is drawn from :math:`N(m_i, \mathrm{diag}(s_i^2))`, and so for y. Under an RBF kernel
    the mean of a pair of different rows has a closed form,

    .. math::
        E\,k(a, b) = \prod_{\text{features}} \sqrt{\frac{\ell^2}{\ell^2 + s_a^2 + s_b^2}}
        \exp\left(-\frac{(m_a - m_b)^2}{2 (\ell^2 + s_a^2 + s_b^2)}\right)

    and the same pairs are left out as in :func:`mmd_squared` with ``estimator="unbiased"``. There
    is no sampling noise, at the price of one pass over the pairs per feature. Memory grows with
    n + m.

    Args:
        x_loc: locations of the rows of x.
        x_scale: their scales, nonnegative: 0 is a point.
        y_loc: locations of the rows of y.
        y_scale: their scales.
        kernel: an :class:`~numpyro_backend.kernels.RBF` or a sum of them.
        x_weights: as in :func:`mmd_squared`.
        y_weights: as in :func:`mmd_squared`.
        num_data: as in :func:`mmd_squared`.

    Returns:
        A scalar array.

    Raises:
        ValueError: if shapes disagree, rows are too few, or the kernel has no closed form.

    Example:
        >>> from numpyro_backend.kernels import RBF
        >>> loc, scale = jnp.zeros((2, 1)), jnp.ones((2, 1))
        >>> mmd_squared_normal(loc, scale, loc, 0.0 * scale, RBF(1.0)).round(3)
        Array(0.163, dtype=float32)
    """
    for side, loc, scale in (("x", x_loc, x_scale), ("y", y_loc, y_scale)):
        if loc.shape != scale.shape:
            raise ValueError(
                f"Expected {side}_scale of {side}_loc's shape {tuple(loc.shape)}; "
                f"got {tuple(scale.shape)}"
            )
    _check_samples(x_loc, y_loc, x_weights, y_weights, num_data, fewest=2)
    pairs = NormalPairs(rbf_lengthscales(kernel, x_loc.shape[1]))
    x, y = _sample((x_loc, x_scale), x_weights), _sample((y_loc, y_scale), y_weights)
    periods = _periods(x, y, num_data)
    return weighted_mmd(pairs, x, y, periods, _coefficients(x, y, periods))


def _sample(rows: tuple[Array, ...], weights: Array | None) -> Sample:
    """Return the sample with zeros for what is not finite in masked rows: 0 times nan is nan."""
    if weights is None:
        return Sample(rows, None)
    masked = (weights == 0)[:, None]
    finite = tuple(jnp.where(masked & ~jnp.isfinite(a), 0, a) for a in rows)
    return Sample(finite, weights.astype(rows[0].dtype))


def _periods(x: Sample, y: Sample, num_data: int | None) -> Periods:
    """Return the pairs that the unbiased estimator leaves out."""
    if num_data is None:
        return Periods(xx=x.rows[0].shape[0], yy=y.rows[0].shape[0])
    return Periods(xx=num_data, yy=num_data, xy=num_data)


def _coefficients(x: Sample, y: Sample, periods: Periods) -> Coefficients:
    """Return what turns the sums xx, yy and xy into averages, with their signs."""
    v, w = (jnp.ones_like(s.rows[0][:, 0]) if s.weights is None else s.weights for s in (x, y))
    totals = (
        _pair_weight(v, v, periods.xx),
        _pair_weight(w, w, periods.yy),
        _pair_weight(v, w, periods.xy),
    )
    enough = (totals[0] > 0) & (totals[1] > 0) & (totals[2] > 0)
    # The inner where keeps the gradient of the branch not taken finite.
    xx, yy, xy = (jnp.where(enough, 1 / jnp.where(enough, t, 1), 0) for t in totals)
    return xx, yy, -2 * xy


def _pair_weight(v: Array, w: Array, period: int | None) -> Float[Array, ""]:
    """Return the weight of all pairs kept; exactly 0 if only one datum has a weight."""
    if period is None:
        return v.sum() * w.sum()
    v_data, w_data = v.reshape(-1, period).sum(0), w.reshape(-1, period).sum(0)
    return (v_data * (w_data.sum() - w_data)).sum()


def _dense_sum(kernel: Kernel, x: Sample, y: Sample, period: int | None) -> Float[Array, ""]:
    n, m = x.rows[0].shape[0], y.rows[0].shape[0]
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
    return pairs.sum() - jnp.diagonal(by_datum, axis1=1, axis2=3).sum()


def _check_samples(
    x: Array,
    y: Array,
    x_weights: Array | None,
    y_weights: Array | None,
    num_data: int | None,
    *,
    fewest: int,
) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Expected x and y of shapes (n, d) and (m, d); "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    for name, rows, weights in (("x", x, x_weights), ("y", y, y_weights)):
        n = rows.shape[0]
        if n < fewest:
            raise ValueError(f"Expected at least {fewest} rows of {name}; got {n}.")
        if weights is not None and weights.shape != (n,):
            raise ValueError(f"Expected {name}_weights of shape {(n,)}; got {tuple(weights.shape)}")
        if num_data is not None and (num_data < fewest or n % num_data):
            raise ValueError(
                f"Expected num_data of at least {fewest} that divides the {n} rows of {name}; "
                f"got {num_data}."
            )


def _unknown_estimator(estimator: str) -> str:
    hint = " Use mmd_squared_normal for the closed form." if estimator == "closed_form" else ""
    return f"Expected estimator 'unbiased' or 'biased'; got {estimator!r}.{hint}"

"""Reference formulas in float64 Python loops, written apart from the library that they check."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PairKernel = Callable[[Array, Array], float]


def squared_distance(a: Array, b: Array) -> float:
    return sum((float(s) - float(t)) ** 2 for s, t in zip(a, b, strict=True))


def rbf(lengthscales: Sequence[float]) -> PairKernel:
    return lambda a, b: sum(math.exp(-squared_distance(a, b) / (2 * s**2)) for s in lengthscales)


def imq(scales: Sequence[float]) -> PairKernel:
    return lambda a, b: sum(c / (c + squared_distance(a, b)) for c in scales)


def expected_rbf(
    loc_a: Array, scale_a: Array, loc_b: Array, scale_b: Array, lengthscale: float
) -> float:
    """E k(a, b) for independent diagonal normals a and b: the dimensions factorise."""
    value = 1.0
    for m_a, s_a, m_b, s_b in zip(loc_a, scale_a, loc_b, scale_b, strict=True):
        spread = lengthscale**2 + s_a**2 + s_b**2
        value *= math.sqrt(lengthscale**2 / spread) * math.exp(-((m_a - m_b) ** 2) / (2 * spread))
    return value


def pair_average(
    pair: Callable[[int, int], float],
    row_weights: Sequence[float],
    column_weights: Sequence[float],
    left_out: Callable[[int, int], bool],
) -> float:
    """Weighted average of pair(i, j) over the pairs that are not left out."""
    total = weight = 0.0
    for i, w_i in enumerate(row_weights):
        for j, w_j in enumerate(column_weights):
            if not left_out(i, j):
                total += w_i * w_j * pair(i, j)
                weight += w_i * w_j
    return total / weight


def mmd_squared_of_pairs(
    xx: Callable[[int, int], float],
    yy: Callable[[int, int], float],
    xy: Callable[[int, int], float],
    x_weights: Sequence[float],
    y_weights: Sequence[float],
    *,
    estimator: str = "unbiased",
    batch_size: int | None = None,
) -> float:
    """xx + yy - 2 xy, each the average of its own pairs."""

    def same_row(i: int, j: int) -> bool:
        if estimator == "biased":
            return False
        return i == j if batch_size is None else i % batch_size == j % batch_size

    def same_datum(i: int, j: int) -> bool:
        return batch_size is not None and same_row(i, j)

    return (
        pair_average(xx, x_weights, x_weights, same_row)
        + pair_average(yy, y_weights, y_weights, same_row)
        - 2 * pair_average(xy, x_weights, y_weights, same_datum)
    )


def mmd_squared(
    x: Array,
    y: Array,
    kernel: PairKernel,
    *,
    estimator: str = "unbiased",
    x_weights: Sequence[float] | None = None,
    y_weights: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> float:
    return mmd_squared_of_pairs(
        lambda i, j: kernel(x[i], x[j]),
        lambda i, j: kernel(y[i], y[j]),
        lambda i, j: kernel(x[i], y[j]),
        [1.0] * len(x) if x_weights is None else x_weights,
        [1.0] * len(y) if y_weights is None else y_weights,
        estimator=estimator,
        batch_size=batch_size,
    )


def mmd_squared_normal(
    x_loc: Array,
    x_scale: Array,
    y_loc: Array,
    y_scale: Array,
    lengthscales: Sequence[float],
    *,
    estimator: str = "unbiased",
    x_weights: Sequence[float] | None = None,
    y_weights: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> float:
    """With ``estimator="biased"`` it is that of two mixtures whose components are the rows."""

    def expected(loc_a: Array, scale_a: Array, loc_b: Array, scale_b: Array) -> float:
        return sum(expected_rbf(loc_a, scale_a, loc_b, scale_b, s) for s in lengthscales)

    return mmd_squared_of_pairs(
        lambda i, j: expected(x_loc[i], x_scale[i], x_loc[j], x_scale[j]),
        lambda i, j: expected(y_loc[i], y_scale[i], y_loc[j], y_scale[j]),
        lambda i, j: expected(x_loc[i], x_scale[i], y_loc[j], y_scale[j]),
        [1.0] * len(x_loc) if x_weights is None else x_weights,
        [1.0] * len(y_loc) if y_weights is None else y_weights,
        estimator=estimator,
        batch_size=batch_size,
    )

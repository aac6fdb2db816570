"""Mutual information bounds as plain loops over Python floats, and a pair whose I is known.

`marginal` is a list of rows, each a list of scores; weights have the shapes of the scores.
"""

import math
from collections.abc import Sequence

Row = Sequence[float]


def nwj(joint: Row, marginal: Sequence[Row], wj: Row, wm: Sequence[Row]) -> tuple[float, float]:
    first = _mean([(w, t) for t, w in zip(joint, wj, strict=True)])
    value = first - _mean([(w, math.exp(t - 1)) for t, w in _flat(marginal, wm)])
    return value, value


def dv(joint: Row, marginal: Sequence[Row], wj: Row, wm: Sequence[Row]) -> tuple[float, float]:
    first = _mean([(w, t) for t, w in zip(joint, wj, strict=True)])
    value = first - math.log(_mean([(w, math.exp(t)) for t, w in _flat(marginal, wm)]))
    return value, value


def infonce(joint: Row, marginal: Sequence[Row], wj: Row, wm: Sequence[Row]) -> tuple[float, float]:
    values = []
    for t, w, negatives, weights in zip(joint, wj, marginal, wm, strict=True):
        total, count = math.exp(t), 1.0
        for s, v in zip(negatives, weights, strict=True):
            total += v * math.exp(s)
            count += v
        values.append((w, math.log(math.exp(t) / (total / count))))
    return _mean(values), _mean(values)


def js(joint: Row, marginal: Sequence[Row], wj: Row, wm: Sequence[Row]) -> tuple[float, float]:
    estimate = _mean([(w, t + 1) for t, w in zip(joint, wj, strict=True)])
    estimate -= _mean([(w, math.exp(t)) for t, w in _flat(marginal, wm)])
    return estimate, _jensen_shannon(joint, marginal, wj, wm)


def smile(
    joint: Row, marginal: Sequence[Row], wj: Row, wm: Sequence[Row], clip: float = 5.0
) -> tuple[float, float]:
    clipped = [[min(max(t, -clip), clip) for t in row] for row in marginal]
    return dv(joint, clipped, wj, wm)[0], _jensen_shannon(joint, marginal, wj, wm)


def gaussian_rho(information: float, dims: int) -> float:
    """Correlation at which `dims` independent pairs of normals share `information` nats."""
    return math.sqrt(1 - math.exp(-2 * information / dims))


def gaussian_log_ratio(x: Row, z: Row, rho: float) -> float:
    """log p(x, z) / p(x) p(z) of pairs of unit normals, as a difference of normal log densities."""
    total = 0.0
    for a, b in zip(x, z, strict=True):
        conditional = -0.5 * ((b - rho * a) ** 2 / (1 - rho**2) + math.log(1 - rho**2))
        total += conditional + 0.5 * b**2
    return total


def _jensen_shannon(joint: Row, marginal: Sequence[Row], wj: Row, wm: Sequence[Row]) -> float:
    """2 JSD with class probabilities p = 1 / (1 + exp(-T)): mean log 2p + mean log 2(1 - p)."""
    total = _mean([(w, math.log(2 / (1 + math.exp(-t)))) for t, w in zip(joint, wj, strict=True)])
    return total + _mean(
        [(w, math.log(2 - 2 / (1 + math.exp(-t)))) for t, w in _flat(marginal, wm)]
    )


def _flat(scores: Sequence[Row], weights: Sequence[Row]) -> list[tuple[float, float]]:
    return [
        (t, w)
        for row, row_weights in zip(scores, weights, strict=True)
        for t, w in zip(row, row_weights, strict=True)
    ]


def _mean(terms: Sequence[tuple[float, float]]) -> float:
    return math.fsum(w * value for w, value in terms) / math.fsum(w for w, _ in terms)

# SPDX-License-Identifier: MIT
"""Means of critic scores: weighted, blind to masked entries, safe from overflow."""

import math
from typing import NamedTuple

from jaxtyping import Float, Shaped

from pyro_infovae._core.arrays import Array, cast, logsumexp, namespace, raised

# exp goes on linearly above e^20. A calibrated critic scores a marginal row that high once in e^20
# (5e8) rows; and this slope times N = 1e5, squared by Adam, stays far inside float32.
EXP_LIMIT = 20.0


class Scores(NamedTuple):
    """A critic's scores and their weights; masked scores are 0 and get no gradient."""

    joint: Float[Array, " rows"]
    marginal: Float[Array, " *marginal"]
    joint_weights: Float[Array, " rows"] | None
    marginal_weights: Float[Array, " *marginal"] | None

    def mean_joint(self) -> Float[Array, ""]:
        """Mean of the joint scores."""
        return weighted_mean(self.joint, self.joint_weights)

    def mean_exp_marginal(self) -> Float[Array, ""]:
        """Mean of exp(marginal scores), each continued linearly above `EXP_LIMIT`."""
        xp = namespace(self.marginal)
        over = self.marginal > EXP_LIMIT
        below = xp.where(over, EXP_LIMIT, self.marginal)
        above = xp.where(over, self.marginal - EXP_LIMIT, 0.0)
        return weighted_mean(xp.exp(below) * (1 + above), self.marginal_weights)

    def log_mean_exp_marginal(self) -> Float[Array, ""]:
        """Logarithm of the mean of exp(marginal scores)."""
        if self.marginal_weights is None:
            return logsumexp(self.marginal) - math.log(math.prod(self.marginal.shape))
        log_terms = self.marginal + log_weights(self.marginal_weights)
        total = self.marginal_weights.sum()
        return logsumexp(log_terms) - namespace(total).log(total)


def masked_scores(
    joint: Float[Array, " rows"],
    marginal: Float[Array, " *marginal"],
    joint_weights: Shaped[Array, " rows"] | None,
    marginal_weights: Shaped[Array, " *marginal"] | None,
) -> Scores:
    """Check shapes; drop what has weight 0, even inf and nan, or everything if a side is empty.

    The scores are raised to float32 at least.
    """
    if joint.ndim != 1:
        raise ValueError(
            f"Expected joint of shape (rows,); got {tuple(joint.shape)}: one score per row"
        )
    _check_weights("joint", joint, joint_weights)
    _check_weights("marginal", marginal, marginal_weights)
    joint, marginal = raised(joint), raised(marginal)
    if joint_weights is None and marginal_weights is None:
        return Scores(joint, marginal, None, None)
    xp = namespace(joint, marginal, joint_weights, marginal_weights)
    joint_weights = _dense_weights(joint, joint_weights)
    marginal_weights = _dense_weights(marginal, marginal_weights)
    usable = (joint_weights.sum() > 0) & (marginal_weights.sum() > 0)
    return Scores(
        xp.where(usable & (joint_weights > 0), joint, 0.0),
        xp.where(usable & (marginal_weights > 0), marginal, 0.0),
        xp.where(usable, joint_weights, 1.0),
        xp.where(usable, marginal_weights, 1.0),
    )


def weighted_mean(
    values: Float[Array, " *shape"], weights: Float[Array, " *shape"] | None
) -> Float[Array, ""]:
    """Mean of finite values."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum()


def log_weights(weights: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Logarithm of weights, -inf at 0 with gradient 0."""
    xp, positive = namespace(weights), weights > 0
    return xp.where(positive, xp.log(xp.where(positive, weights, 1.0)), -math.inf)


def _dense_weights(scores: Array, weights: Array | None) -> Array:
    if weights is None:
        return namespace(scores).ones_like(scores)
    return cast(weights, scores.dtype)


def _check_weights(name: str, scores: Array, weights: Array | None) -> None:
    if weights is not None and weights.shape != scores.shape:
        raise ValueError(
            f"Expected {name}_weights of shape {tuple(scores.shape)}, that of the scores; "
            f"got {tuple(weights.shape)}"
        )

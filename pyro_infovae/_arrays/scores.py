# SPDX-License-Identifier: MIT
"""Means of critic scores: weighted, blind to masked entries, safe from overflow."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pyro_infovae._arrays.full_precision import raised

# exp goes on linearly above e^20. A calibrated critic scores a marginal row that high once in e^20
# (5e8) rows; and this slope times N = 1e5, squared by Adam, stays far inside float32.
EXP_LIMIT = 20.0


class Scores(NamedTuple):
    """A critic's scores and their weights; masked scores are 0 and get no gradient."""

    joint: Float[Tensor, " rows"]
    marginal: Float[Tensor, " *marginal"]
    joint_weights: Float[Tensor, " rows"] | None
    marginal_weights: Float[Tensor, " *marginal"] | None

    def mean_joint(self) -> Float[Tensor, ""]:
        """Mean of the joint scores."""
        return weighted_mean(self.joint, self.joint_weights)

    def mean_exp_marginal(self) -> Float[Tensor, ""]:
        """Mean of exp(marginal scores), each continued linearly above `EXP_LIMIT`."""
        above = (self.marginal - EXP_LIMIT).relu()
        return weighted_mean(
            self.marginal.clamp(max=EXP_LIMIT).exp() * (1 + above), self.marginal_weights
        )

    def log_mean_exp_marginal(self) -> Float[Tensor, ""]:
        """Logarithm of the mean of exp(marginal scores)."""
        if self.marginal_weights is None:
            return self.marginal.flatten().logsumexp(0) - math.log(self.marginal.numel())
        log_terms = self.marginal + log_weights(self.marginal_weights)
        return log_terms.flatten().logsumexp(0) - self.marginal_weights.sum().log()


def masked_scores(
    joint: Float[Tensor, " rows"],
    marginal: Float[Tensor, " *marginal"],
    joint_weights: Shaped[Tensor, " rows"] | None,
    marginal_weights: Shaped[Tensor, " *marginal"] | None,
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
    joint_weights = _dense_weights(joint, joint_weights)
    marginal_weights = _dense_weights(marginal, marginal_weights)
    usable = (joint_weights.sum() > 0) & (marginal_weights.sum() > 0)
    return Scores(
        torch.where(usable & (joint_weights > 0), joint, 0.0),
        torch.where(usable & (marginal_weights > 0), marginal, 0.0),
        torch.where(usable, joint_weights, 1.0),
        torch.where(usable, marginal_weights, 1.0),
    )


def weighted_mean(
    values: Float[Tensor, " *shape"], weights: Float[Tensor, " *shape"] | None
) -> Float[Tensor, ""]:
    """Mean of finite values."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum()


def log_weights(weights: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Logarithm of weights, -inf at 0 with gradient 0."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1.0).log(), -math.inf)


def _dense_weights(scores: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones_like(scores) if weights is None else weights.to(scores.dtype)


def _check_weights(name: str, scores: Tensor, weights: Tensor | None) -> None:
    if weights is not None and weights.shape != scores.shape:
        raise ValueError(
            f"Expected {name}_weights of shape {tuple(scores.shape)}, that of the scores; "
            f"got {tuple(weights.shape)}"
        )

# SPDX-License-Identifier: MIT
r"""Estimates of mutual information from a critic's scores.

.. math:: I(x; z) = E_{p(x, z)} \log \frac{p(x, z)}{p(x)\, p(z)} \quad \text{nats}

A critic :math:`T(x, z)` scores rows of the joint distribution (each x with its own code) and of the
product of the marginals (x with other rows' codes). A bound turns both sets of scores into an
`estimate` of I, to report, and a `surrogate`, to maximise in the critic and in the encoder:

=========  ====================================  ==================  =================
bound      estimate                              at most             spread
=========  ====================================  ==================  =================
`nwj`      lower bound in expectation                                large, as e^I
`dv`       lower bound, plus a small-batch bias                      large, as e^I
`infonce`  lower bound in expectation            log(negatives + 1)  small
`js`       as `nwj`, of a steadier critic                            large, as e^I
`smile`    no bound                                                  small, by clipping
=========  ====================================  ==================  =================

Scores have shape (rows,) for the joint and any shape for the marginals; only `infonce` needs them
row by row. Weights have the shapes of the scores and are 1 if not given; a weight w counts as w
copies of its entry, and weight 0 (a masked row) for nothing, whatever the score. Where all of
one side is masked nothing can be told: estimate and surrogate are 0, with gradient 0. Scores in
half precision, whose exponentials overflow or are coarse, are raised to float32.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from jaxtyping import Float, Shaped

from pyro_infovae._core.arrays import Array, log_sigmoid, logsumexp, namespace, raised
from pyro_infovae._core.scores import Scores, log_weights, masked_scores, weighted_mean


class MutualInformationEstimate(NamedTuple):
    """An estimate of mutual information to report, and what to differentiate, both in nats."""

    estimate: Float[Array, ""]
    surrogate: Float[Array, ""]


class Bound(Protocol):
    """What an objective needs of a bound: a function of critic scores and their weights."""

    def __call__(
        self,
        joint: Float[Array, " rows"],
        marginal: Float[Array, " *marginal"],
        *,
        joint_weights: Shaped[Array, " rows"] | None = None,
        marginal_weights: Shaped[Array, " *marginal"] | None = None,
    ) -> MutualInformationEstimate:
        """Estimate mutual information from scores."""


def nwj(
    joint: Float[Array, " rows"],
    marginal: Float[Array, " *marginal"],
    *,
    joint_weights: Shaped[Array, " rows"] | None = None,
    marginal_weights: Shaped[Array, " *marginal"] | None = None,
) -> MutualInformationEstimate:
    r"""Nguyen-Wainwright-Jordan bound.

    .. math:: \hat I = \frac1n \sum_i T_i - \frac1m \sum_j e^{\tilde T_j - 1}

    Its expectation is a lower bound on I for every critic, tight at :math:`T = 1 + \log r`, with r
    the ratio of the joint density to the product of the marginals. The gradient is unbiased. The
    variance is large: at the best critic at least :math:`(e^I - 1)/m` with m independent negatives.
    The exponential is exact up to 20 nats and linear beyond: a bound still if :math:`r < e^{20}`.
    One early batch with a huge score can throw a critic off for good: clip its gradient norm.

    Args:
        joint: scores T(x_i, z_i), shape (rows,).
        marginal: scores of x with other rows' codes, any shape.
        joint_weights: row weights, shape (rows,).
        marginal_weights: weights of `marginal`, of its shape.

    Returns:
        The estimate in nats, which is its own surrogate.

    Raises:
        ValueError: if `joint` is not (rows,), or weights differ in shape from their scores.

    Source:
        Nguyen, Wainwright, Jordan, "Estimating divergence functionals and the likelihood ratio by
        convex risk minimization", arXiv 0809.0853; named so in Poole et al., arXiv 1905.06922.

    Example:
        >>> import numpy as np
        >>> joint, marginal = np.array([3.0, 2.0]), np.array([0.0, 1.0])
        >>> round(float(nwj(joint, marginal).estimate), 4)
        1.8161
    """
    scores = masked_scores(raised(joint) - 1, raised(marginal) - 1, joint_weights, marginal_weights)
    value = _nwj_of_log_ratio(scores)
    return MutualInformationEstimate(value, value)


def dv(
    joint: Float[Array, " rows"],
    marginal: Float[Array, " *marginal"],
    *,
    joint_weights: Shaped[Array, " rows"] | None = None,
    marginal_weights: Shaped[Array, " *marginal"] | None = None,
) -> MutualInformationEstimate:
    r"""Donsker-Varadhan bound, MINE's objective.

    .. math:: \hat I = \frac1n \sum_i T_i - \log \frac1m \sum_j e^{\tilde T_j}

    A lower bound on I for every critic as m grows, tight at :math:`T = \log r` plus any constant.
    On a finite batch the logarithm of a mean makes the expectation too large (by about its
    variance / 2, and it may exceed I) and the gradient biased. The variance is that of `nwj`.

    Args:
        joint: scores T(x_i, z_i), shape (rows,).
        marginal: scores of x with other rows' codes, any shape.
        joint_weights: row weights, shape (rows,).
        marginal_weights: weights of `marginal`, of its shape.

    Returns:
        The estimate in nats, which is its own surrogate.

    Raises:
        ValueError: if `joint` is not (rows,), or weights differ in shape from their scores.

    Source:
        Belghazi et al., "MINE: Mutual Information Neural Estimation", arXiv 1801.04062.

    Example:
        >>> import numpy as np
        >>> joint, marginal = np.array([3.0, 2.0]), np.array([0.0, 1.0])
        >>> round(float(dv(joint, marginal).estimate), 4)
        1.8799
    """
    scores = masked_scores(joint, marginal, joint_weights, marginal_weights)
    value = _dv(scores)
    return MutualInformationEstimate(value, value)


def infonce(
    joint: Float[Array, " rows"],
    marginal: Float[Array, " rows *negatives"],
    *,
    joint_weights: Shaped[Array, " rows"] | None = None,
    marginal_weights: Shaped[Array, " rows *negatives"] | None = None,
) -> MutualInformationEstimate:
    r"""InfoNCE bound: how well the critic finds a row's own code among k others.

    .. math:: \hat I = \frac1n \sum_i \log
        \frac{e^{T_i}}{\frac{1}{k+1} \left(e^{T_i} + \sum_{j=1}^{k} e^{\tilde T_{ij}}\right)}

    Its expectation is a lower bound on I for every critic, and no estimate exceeds log(k + 1):
    log n nats with all pairs of n rows, but log 2 = 0.69 with one negative per row. The variance is
    small, and the bias large as I nears that ceiling. The best critic is :math:`\log r` plus any
    function of x.

    Args:
        joint: scores T(x_i, z_i), shape (rows,).
        marginal: scores of x_i with other rows' codes, shape (rows,) or (rows, negatives).
        joint_weights: row weights, shape (rows,); a masked row's negatives go with it.
        marginal_weights: weights of `marginal`, of its shape; k is their sum over a row.

    Returns:
        The estimate in nats, which is its own surrogate.

    Raises:
        ValueError: if `joint` is not (rows,), `marginal` has another number of rows, or weights
            differ in shape from their scores.

    Source:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding",
        arXiv 1807.03748; the ceiling: Poole et al., arXiv 1905.06922.

    Example:
        >>> import numpy as np
        >>> joint, marginal = np.array([3.0, 2.0]), np.array([0.0, 1.0])
        >>> round(float(infonce(joint, marginal).estimate), 4)
        0.5122
    """
    rows = joint.shape[0]
    if marginal.ndim not in (1, 2) or marginal.shape[0] != rows:
        raise ValueError(
            f"Expected marginal of shape ({rows},) or ({rows}, negatives); got "
            f"{tuple(marginal.shape)}: infonce compares each row's score with its own negatives"
        )
    scores = masked_scores(joint, marginal, joint_weights, marginal_weights)
    negatives = scores.marginal.reshape(rows, -1)
    log_count: float | Array = math.log(negatives.shape[1] + 1)
    if scores.joint_weights is not None and scores.marginal_weights is not None:
        xp = namespace(*scores)
        kept = scores.joint_weights[:, None] > 0
        weights = xp.where(kept, scores.marginal_weights.reshape(rows, -1), 0.0)
        negatives = xp.where(kept, negatives, 0.0) + log_weights(weights)
        log_count = xp.log1p(weights.sum(1))
    # One row per softmax, its joint score first: never empty, so never -inf.
    softmax = namespace(*scores).concatenate([scores.joint[:, None], negatives], 1)
    log_sum = logsumexp(softmax, 1)
    value = weighted_mean(scores.joint - log_sum + log_count, scores.joint_weights)
    return MutualInformationEstimate(value, value)


def js(
    joint: Float[Array, " rows"],
    marginal: Float[Array, " *marginal"],
    *,
    joint_weights: Shaped[Array, " rows"] | None = None,
    marginal_weights: Shaped[Array, " *marginal"] | None = None,
) -> MutualInformationEstimate:
    r"""`nwj` of T + 1, with a critic trained on the Jensen-Shannon divergence.

    .. math::
        \text{surrogate} &= \frac1n \sum_i \log \sigma(T_i)
            + \frac1m \sum_j \log \sigma(-\tilde T_j) + 2 \log 2 \\
        \hat I &= \frac1n \sum_i (T_i + 1) - \frac1m \sum_j e^{\tilde T_j}

    The surrogate is logistic classification of joint against marginal rows: a lower bound on twice
    their Jensen-Shannon divergence, with bounded gradients, best at :math:`T = \log r`. The
    estimate's expectation is a lower bound on I for every critic, with the variance of `nwj`.

    Args:
        joint: scores T(x_i, z_i), shape (rows,).
        marginal: scores of x with other rows' codes, any shape.
        joint_weights: row weights, shape (rows,).
        marginal_weights: weights of `marginal`, of its shape.

    Returns:
        The estimate in nats, and the surrogate, at most 2 log 2 nats.

    Raises:
        ValueError: if `joint` is not (rows,), or weights differ in shape from their scores.

    Source:
        Poole et al., "On Variational Bounds of Mutual Information", arXiv 1905.06922.

    Example:
        >>> import numpy as np
        >>> joint, marginal = np.array([3.0, 2.0]), np.array([-3.0, -2.0])
        >>> [round(float(value), 4) for value in js(joint, marginal)]
        [3.4074, 1.2108]
    """
    scores = masked_scores(joint, marginal, joint_weights, marginal_weights)
    return MutualInformationEstimate(_nwj_of_log_ratio(scores), _jensen_shannon(scores))


def smile(
    joint: Float[Array, " rows"],
    marginal: Float[Array, " *marginal"],
    *,
    clip: float = 5.0,
    joint_weights: Shaped[Array, " rows"] | None = None,
    marginal_weights: Shaped[Array, " *marginal"] | None = None,
) -> MutualInformationEstimate:
    r"""SMILE: `dv` with clipped marginal scores, and the critic trained as in `js`.

    .. math:: \hat I = \frac1n \sum_i T_i
        - \log \frac1m \sum_j e^{\max(-\tau, \min(\tilde T_j, \tau))}

    Not a bound: clipping the scores from above can leave the estimate too large, by any amount for
    a bad critic. It buys a clipped mean with a variance of at most :math:`(\sinh \tau)^2/m` with m
    independent negatives. A smaller clip has less variance and more bias; an infinite one is `dv`.

    Args:
        joint: scores T(x_i, z_i), shape (rows,).
        marginal: scores of x with other rows' codes, any shape.
        clip: τ > 0 in nats; the paper uses 1 and 5.
        joint_weights: row weights, shape (rows,).
        marginal_weights: weights of `marginal`, of its shape.

    Returns:
        The estimate in nats, and the surrogate of `js`.

    Raises:
        ValueError: if `clip` is not positive, `joint` is not (rows,), or weights differ in shape
            from their scores.

    Source:
        Song, Ermon, "Understanding the Limitations of Variational Mutual Information Estimators",
        arXiv 1910.06222.

    Example:
        >>> import numpy as np
        >>> joint, marginal = np.array([3.0, 2.0]), np.array([0.0, 9.0])
        >>> [round(float(smile(joint, marginal, clip=c).estimate), 4) for c in (1.0, 5.0)]
        [1.8799, -1.8136]
    """
    if not clip > 0:
        raise ValueError(f"Expected clip > 0 nats; got {clip}: use math.inf for no clipping.")
    scores = masked_scores(joint, marginal, joint_weights, marginal_weights)
    marginal = namespace(scores.marginal).clip(scores.marginal, -clip, clip)
    clipped = scores._replace(marginal=marginal)
    return MutualInformationEstimate(_dv(clipped), _jensen_shannon(scores))


def _nwj_of_log_ratio(scores: Scores) -> Float[Array, ""]:
    return 1 + scores.mean_joint() - scores.mean_exp_marginal()


def _dv(scores: Scores) -> Float[Array, ""]:
    return scores.mean_joint() - scores.log_mean_exp_marginal()


def _jensen_shannon(scores: Scores) -> Float[Array, ""]:
    joint = weighted_mean(log_sigmoid(scores.joint), scores.joint_weights)
    marginal = weighted_mean(log_sigmoid(-scores.marginal), scores.marginal_weights)
    return joint + marginal + 2 * math.log(2)


BOUNDS: Mapping[str, Bound] = {"nwj": nwj, "dv": dv, "infonce": infonce, "js": js, "smile": smile}


def get_bound(bound: str | Bound) -> Bound:
    """Look up a bound by name; a function, `functools.partial(smile, clip=1.0)` say, is its own.

    Args:
        bound: a key of `BOUNDS`, or a function like them.

    Raises:
        ValueError: if there is no bound of that name.

    Example:
        >>> get_bound("nwj") is nwj
        True
    """
    if callable(bound):
        return bound
    if bound not in BOUNDS:
        names = ", ".join(map(repr, BOUNDS))
        raise ValueError(f"Expected bound to be one of {names}, or a function; got {bound!r}")
    return BOUNDS[bound]

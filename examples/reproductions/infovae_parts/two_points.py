"""The data set of two points, and what a model and a guide of it are worth, by quadrature.

The prior is a standard normal of one dimension; a point's likelihood is normal, with a mean and a
scale that the decoder makes of z; its posterior in the guide is a normal of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

POINTS = np.array([-1.0, 1.0])
DATA = np.repeat(POINTS, 64)
HIDDEN = 64
OBJECTIVES = ("elbo", "mmd")
LEARNING_RATE = 2e-3
LAMBD = 1000.0
# Where both posteriors are the prior, the gradient is 0 and the code stays unused.
INITIAL_LOC = POINTS / 2
INITIAL_SCALE = 0.5

PRIOR_GRID = np.linspace(-12.0, 12.0, 24_001)
POSTERIOR_GRID = np.linspace(-8.0, 8.0, 4001)

Decode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Snapshot:
    """A training at some step.

    Attributes:
        step: How many steps it has taken.
        loc: The means of q(z|x) of the two points.
        scale: Their standard deviations.
        decode: Means and standard deviations of p(x|z), from codes of shape (n,).
    """

    step: int
    loc: np.ndarray
    scale: np.ndarray
    decode: Decode


def measures(snapshot: Snapshot) -> dict[str, float]:
    """What a snapshot is worth, in nats per datum.

    Returns:
        Means and scales of the two posteriors; `evidence`, the exact log p(x), and `elbo`, both
        averaged over the two points; their difference `gap`, KL(q(z|x) ‖ p(z|x)); and
        `marginal_kl`, KL(q(z) ‖ p(z)) of the two posteriors' mixture.
    """
    evidence = float(np.mean([log_evidence(x, snapshot.decode) for x in POINTS]))
    bounds = [
        elbo(x, loc, scale, snapshot.decode)
        for x, loc, scale in zip(POINTS, snapshot.loc, snapshot.scale, strict=True)
    ]
    return {
        "loc_minus": float(snapshot.loc[0]),
        "loc_plus": float(snapshot.loc[1]),
        "scale_minus": float(snapshot.scale[0]),
        "scale_plus": float(snapshot.scale[1]),
        "evidence": evidence,
        "elbo": float(np.mean(bounds)),
        "gap": evidence - float(np.mean(bounds)),
        "marginal_kl": marginal_kl(snapshot.loc, snapshot.scale),
    }


def log_evidence(x: float, decode: Decode) -> float:
    """Log p(x), integrated over the prior."""
    log_joint = log_normal(PRIOR_GRID) + log_normal(x, *decode(PRIOR_GRID))
    return float(logsumexp(log_joint) + np.log(PRIOR_GRID[1] - PRIOR_GRID[0]))


def elbo(x: float, loc: float, scale: float, decode: Decode) -> float:
    """The evidence lower bound of one point, integrated over its posterior in the guide."""
    weights = np.exp(log_normal(POSTERIOR_GRID)) * (POSTERIOR_GRID[1] - POSTERIOR_GRID[0])
    log_likelihood = log_normal(x, *decode(loc + scale * POSTERIOR_GRID))
    kl = 0.5 * (loc**2 + scale**2 - 1) - np.log(scale)
    return float(weights @ log_likelihood - kl)


def marginal_kl(loc: np.ndarray, scale: np.ndarray) -> float:
    """KL(q(z) ‖ p(z)), where q(z) is the mixture of normals in equal parts, p(z) a normal."""
    total = 0.0
    for own_loc, own_scale in zip(loc, scale, strict=True):
        z = own_loc + own_scale * POSTERIOR_GRID
        log_q = logsumexp(log_normal(z[:, None], loc, scale), axis=1) - np.log(len(loc))
        weights = np.exp(log_normal(POSTERIOR_GRID)) * (POSTERIOR_GRID[1] - POSTERIOR_GRID[0])
        total += float(weights @ (log_q - log_normal(z))) / len(loc)
    return total


def log_normal(
    x: np.ndarray | float, loc: np.ndarray | float = 0.0, scale: np.ndarray | float = 1.0
) -> np.ndarray:
    """The log density of a normal."""
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)

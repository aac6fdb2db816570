"""The data set of two points, and what a model and a guide of it are worth, by quadrature.

The prior is a standard normal of one dimension; a point's likelihood is normal, with a mean and a
scale that the decoder makes of z; its posterior in the guide is a normal of its own.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from halves import draw_layers

POINTS = np.array([-1.0, 1.0])
DATA = np.repeat(POINTS, 64)
LAYERS = (1, 64, 64, 2)
OBJECTIVES = ("elbo", "mmd")
LEARNING_RATE = 2e-3
LAMBD = 1000.0
# Where both posteriors are the prior, the gradient is 0 and the code stays unused.
INITIAL_LOC = POINTS / 2
INITIAL_SCALE = 0.5

PRIOR_GRID = np.linspace(-12.0, 12.0, 24_001)
POSTERIOR_GRID = np.linspace(-8.0, 8.0, 4001)
POSTERIOR_WEIGHTS = norm.pdf(POSTERIOR_GRID) * (POSTERIOR_GRID[1] - POSTERIOR_GRID[0])

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


def train(
    objective: str, *, steps: tuple[int, ...], seed: int, backend: str, device: str
) -> Iterator[Snapshot]:
    """Train on the two points from the seed's weights, and stop at these steps."""
    half = importlib.import_module(f"halves.with_{backend}")
    loss = {
        "elbo": half.TraceMeanField_ELBO,
        "mmd": lambda: half.TraceMMD_ELBO(lambd=LAMBD, estimator="closed_form"),
    }[objective]
    with half.computing(device):
        model, guide = _programs(half, seed)
        fitting = half.Fitting(model, guide, loss(), half.adam(LEARNING_RATE), seed=seed)
        taken = 0
        for step in steps:
            fitting.advance(step - taken)
            taken = step
            layers = [
                (fitting.param(f"kernel_{i}"), fitting.param(f"bias_{i}"))
                for i in range(len(LAYERS) - 1)
            ]

            def decode(z: np.ndarray, layers: Any = layers) -> tuple[np.ndarray, np.ndarray]:
                return _decode(np, layers, z)

            yield Snapshot(step, fitting.param("loc"), np.exp(fitting.param("log_scale")), decode)


def _programs(half: Any, seed: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Model and guide of the data, with the names of either backend."""
    ppl, dist = half.ppl, half.dist
    drawn = draw_layers(np.random.default_rng(seed), *LAYERS)
    start = [(half.array(kernel), half.array(bias)) for kernel, bias in drawn]
    x, zero, first_loc = map(half.array, (DATA, 0.0, INITIAL_LOC))
    first_log_scale = half.array(np.full(2, np.log(INITIAL_SCALE)))
    point = half.xp.asarray((DATA > 0).astype(int))

    def model() -> None:
        """Draw a code for every datum, and score the datum given its code."""
        layers = [
            (ppl.param(f"kernel_{i}", kernel), ppl.param(f"bias_{i}", bias))
            for i, (kernel, bias) in enumerate(start)
        ]
        with ppl.plate("data", len(DATA)):
            z = ppl.sample("z", dist.Normal(zero, 1.0))
            ppl.sample("x", dist.Normal(*_decode(half.xp, layers, z)), obs=x)

    def guide() -> None:
        """Draw a code for every datum, from the normal of its point."""
        loc = ppl.param("loc", first_loc)
        log_scale = ppl.param("log_scale", first_log_scale)
        with ppl.plate("data", len(DATA)):
            ppl.sample("z", dist.Normal(loc[point], half.xp.exp(log_scale)[point]))

    return model, guide


def _decode(xp: Any, layers: Any, z: Any) -> tuple[Any, Any]:
    """Means and scales of p(x|z) for codes of shape (n,)."""
    *hidden, (kernel, bias) = layers
    values = z[:, None]
    for weights, offset in hidden:
        values = xp.tanh(values @ weights + offset)
    loc, log_scale = (values @ kernel + bias).T
    return loc, xp.exp(log_scale)


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
    log_joint = norm.logpdf(PRIOR_GRID) + norm.logpdf(x, *decode(PRIOR_GRID))
    return float(logsumexp(log_joint) + np.log(PRIOR_GRID[1] - PRIOR_GRID[0]))


def elbo(x: float, loc: float, scale: float, decode: Decode) -> float:
    """The evidence lower bound of one point, integrated over its posterior in the guide."""
    log_likelihood = norm.logpdf(x, *decode(loc + scale * POSTERIOR_GRID))
    kl = 0.5 * (loc**2 + scale**2 - 1) - np.log(scale)
    return float(POSTERIOR_WEIGHTS @ log_likelihood - kl)


def marginal_kl(loc: np.ndarray, scale: np.ndarray) -> float:
    """KL(q(z) ‖ p(z)), where q(z) is the mixture of normals in equal parts, p(z) a normal."""
    total = 0.0
    for own_loc, own_scale in zip(loc, scale, strict=True):
        z = own_loc + own_scale * POSTERIOR_GRID
        log_q = logsumexp(norm.logpdf(z[:, None], loc, scale), axis=1) - np.log(len(loc))
        total += float(POSTERIOR_WEIGHTS @ (log_q - norm.logpdf(z))) / len(loc)
    return total

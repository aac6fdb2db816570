"""Models, guides and a critic, written once for both halves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tests.halves import Case, Half

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
SEQUENCES = RNG.normal(size=(4, 6, 3))
PARAMS = {
    "encoder": RNG.normal(size=(3, 2)),
    "scale": np.array([0.5, 1.2]),
    "decoder": RNG.normal(size=(2, 3)),
    "prior_loc": np.array([0.3, -0.2]),
}
CRITIC = {
    "x_weight": np.array([[0.3, -0.2], [0.5, 0.1], [-0.4, 0.2]]),
    "z_weight": np.array([[0.6, 0.1], [-0.3, 0.4]]),
    "out": np.array([0.7, -0.5]),
}
MINIBATCH = np.array([7, 2, 11, 4, 5])
MASK = np.arange(12) % 3 != 0
RAGGED = np.arange(4)[:, None] < np.array([4, 3, 1, 2, 4, 1])


def _prior(half: Half) -> Any:
    loc = half.param("prior_loc", PARAMS["prior_loc"])
    return half.dist.Normal(loc, half.xp.ones_like(loc)).to_event(1)


def _scale(half: Half) -> Any:
    return half.param("scale", PARAMS["scale"], constraint=half.dist.constraints.positive)


def _posterior(half: Half, x: Any) -> Any:
    return half.dist.Normal(x @ half.param("encoder", PARAMS["encoder"]), _scale(half)).to_event(1)


def _likelihood(half: Half, z: Any) -> Any:
    mean = half.xp.tanh(z) @ half.param("decoder", PARAMS["decoder"])
    return half.dist.Normal(mean, 0.7).to_event(1)


def vae(
    half: Half,
    *,
    x: np.ndarray = X,
    batch: int | None = None,
    index: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Case:
    @contextlib.contextmanager
    def plate() -> Iterator[Any]:
        with half.plate("data", len(x), batch=batch, index=index) as chosen, half.mask(mask):
            yield chosen

    def model(x: Any) -> None:
        with plate() as chosen:
            z = half.sample("z", _prior(half))
            half.sample("x", _likelihood(half, z), obs=x[chosen])

    def guide(x: Any) -> None:
        with plate() as chosen:
            half.sample("z", _posterior(half, x[chosen]))

    return Case(model, guide, (half.xp.asarray(x),))


def grid(half: Half, *, x: np.ndarray = SEQUENCES, mask: np.ndarray | None = None) -> Case:
    """The program of :func:`vae` with its data in two plates: the same objective."""
    rows, columns = x.shape[:2]

    @contextlib.contextmanager
    def plates() -> Iterator[None]:
        with half.plate("columns", columns), half.plate("rows", rows, dim=-2), half.mask(mask):
            yield

    def model(x: Any) -> None:
        with plates():
            z = half.sample("z", _prior(half))
            half.sample("x", _likelihood(half, z), obs=x)

    def guide(x: Any) -> None:
        with plates():
            half.sample("z", _posterior(half, x))

    return Case(model, guide, (half.xp.asarray(x),))


def nested(half: Half) -> Case:
    """A latent per group and one per item of a group: two stacks of plates."""
    x = half.xp.asarray(SEQUENCES)

    def model() -> None:
        with half.plate("groups", 6):
            outer = half.sample("outer", _prior(half))
            with half.plate("items", 4, dim=-2):
                # The full shape, for both halves to draw in the same order.
                loc = outer + half.xp.zeros_like(x[..., :2])
                z = half.sample("z", half.dist.Normal(loc, 1.0).to_event(1))
                half.sample("x", _likelihood(half, z), obs=x)

    def guide() -> None:
        with half.plate("groups", 6):
            half.sample("outer", _posterior(half, x.mean(0)))
            with half.plate("items", 4, dim=-2):
                half.sample("z", _posterior(half, x))

    return Case(model, guide)


def positive(half: Half) -> Case:
    """A latent of constrained support."""
    x = half.xp.asarray(X)

    def model() -> None:
        loc = half.param("prior_loc", PARAMS["prior_loc"])
        with half.plate("data", 12):
            z = half.sample("z", half.dist.LogNormal(loc, 0.8).to_event(1))
            half.sample("x", _likelihood(half, z), obs=x)

    def guide() -> None:
        loc = 0.3 * x @ half.param("encoder", PARAMS["encoder"])
        with half.plate("data", 12):
            half.sample("z", half.dist.LogNormal(loc, _scale(half)).to_event(1))

    return Case(model, guide)


def hierarchy(half: Half) -> Case:
    """A global latent θ ~ N(0, I), and local ones z_i ~ N(θ, I)."""
    x = half.xp.asarray(X)

    def model() -> None:
        theta = half.sample("theta", _prior(half))
        with half.plate("data", 12):
            loc = theta + half.xp.zeros_like(x[:, :2])
            z = half.sample("z", half.dist.Normal(loc, 1.0).to_event(1))
            half.sample("x", _likelihood(half, z), obs=x)

    def guide() -> None:
        half.sample("theta", _posterior(half, x.mean(0)))
        with half.plate("data", 12):
            half.sample("z", _posterior(half, x))

    return Case(model, guide)


PROGRAMS: dict[str, Callable[[Half], Case]] = {
    "plain": vae,
    "subsampled": partial(vae, batch=5),
    "masked": partial(vae, mask=MASK),
    "ragged": partial(grid, mask=RAGGED),
    "nested": nested,
    "positive": positive,
    "hierarchy": hierarchy,
}


class Exact(NamedTuple):
    """A program whose evidence log p(x) is known, and the posterior's KL to the prior, in nats.

    Attributes:
        case: the program; its guide draws from the posterior.
        evidence: log p(x).
        kl: the divergence of the posterior from the prior, over all data.
        loc: the posterior's locations.
        scale: its scales.
    """

    case: Case
    evidence: float
    kl: float
    loc: np.ndarray
    scale: np.ndarray


def linear_gaussian(half: Half) -> Exact:
    """z ~ N(0, I) and x | z ~ N(W z, s² I) with orthogonal columns of W; the guide is exact."""
    weight, noise = np.array([[1.0, 2.0, 2.0], [2.0, 1.0, -2.0]]).T / 3, 0.8
    variance = 1 / (1 + 1 / noise**2)
    loc, scale = variance * X @ weight / noise**2, np.full((12, 2), math.sqrt(variance))
    covariance = weight @ weight.T + noise**2 * np.eye(3)
    quadratic = np.einsum("ni,ij,nj->", X, np.linalg.inv(covariance), X)
    evidence = -0.5 * (quadratic + 12 * np.linalg.slogdet(2 * np.pi * covariance)[1])
    x, w, q_loc, q_scale = (half.xp.asarray(array) for array in (X, weight, loc, scale))

    def model() -> None:
        with half.plate("data", 12):
            prior = half.dist.Normal(half.xp.zeros_like(q_loc), 1.0)
            z = half.sample("z", prior.to_event(1))
            half.sample("x", half.dist.Normal(z @ w.T, noise).to_event(1), obs=x)

    def guide() -> None:
        with half.plate("data", 12):
            half.sample("z", half.dist.Normal(q_loc, q_scale).to_event(1))

    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * np.log(scale)).sum()
    return Exact(Case(model, guide), float(evidence), float(kl), loc, scale)


def one_datum(
    half: Half, *, shift: float = 0.0, widening: float = 1.0, is_positive: bool = False
) -> tuple[Case, float]:
    """u ~ N(0, 1) and y | u ~ N(u, 0.5²), seen as they are, or as z = exp(u) and x = exp(y).

    The guide is the posterior, moved and widened by so many of its own standard deviations. The
    second value is the evidence, in nats.
    """
    y, noise = 0.9, 0.5
    variance = 1 / (1 + 1 / noise**2)
    loc, scale = variance * y / noise**2, math.sqrt(variance)
    evidence = -0.5 * (y**2 / (1 + noise**2) + math.log(2 * math.pi * (1 + noise**2)))
    family = half.dist.LogNormal if is_positive else half.dist.Normal
    x = half.xp.asarray(math.exp(y) if is_positive else y)

    def model() -> None:
        z = half.sample("z", family(half.xp.zeros_like(x), 1.0))
        half.sample("x", family(half.xp.log(z) if is_positive else z, noise), obs=x)

    def guide() -> None:
        half.sample("z", family(loc + shift * scale + half.xp.zeros_like(x), widening * scale))

    # The density of x = exp(y) is that of y over x.
    return Case(model, guide), evidence - y if is_positive else evidence


def correlated_pair(half: Half, *, correlation: float, num: int, batch: int) -> Case:
    """Data x that are the quantiles of N(0, 1), and codes z | x ~ N(c x, 1 - c²)."""
    quantiles = half.dist.Normal(half.xp.asarray(np.zeros(1)), 1.0)
    x = quantiles.icdf(half.xp.asarray((np.arange(num)[:, None] + 0.5) / num))
    scale = math.sqrt(1 - correlation**2)

    def model() -> None:
        with half.plate("data", num, batch=batch) as chosen:
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x[chosen]), 1.0).to_event(1))
            half.sample("x", half.dist.Normal(z, 1.0).to_event(1), obs=x[chosen])

    def guide() -> None:
        with half.plate("data", num, batch=batch) as chosen:
            half.sample("z", half.dist.Normal(correlation * x[chosen], scale).to_event(1))

    return Case(model, guide)


def critic(half: Half) -> Any:
    """A critic of the data and codes of the programs above that have two features."""

    def score(params: Any, x: Any, z: Any) -> Any:
        return half.xp.tanh(x @ params["x_weight"] + z @ params["z_weight"]) @ params["out"]

    return half.critic(score, CRITIC)

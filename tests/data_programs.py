"""Programs with data as their argument, written once: each half's ``programs.py`` has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.halves import Half

Pair = tuple[Callable[..., None], Callable[..., None]]
LENGTHS = np.array([5, 3, 1, 4])


def _standard(half: Half, num: int = 2) -> Any:
    return half.dist.Normal(half.xp.zeros(num), half.xp.ones(num)).to_event(1)


def encoded(half: Half, x: Any, latent_dim: int = 2) -> Any:
    start = np.linspace(-0.5, 0.6, x.shape[-1] * latent_dim).reshape(x.shape[-1], latent_dim)
    positive = half.dist.constraints.positive
    scale = half.param("scale", np.full(latent_dim, 0.4), constraint=positive)
    return half.dist.Normal(x @ half.param("encoder", start), scale).to_event(1)


def decoded(half: Half, z: Any, dim: int) -> Any:
    start = np.linspace(0.7, -0.4, z.shape[-1] * dim).reshape(z.shape[-1], dim)
    return half.dist.Normal(half.xp.tanh(z) @ half.param("decoder", start), 0.7).to_event(1)


def vae(half: Half, *, batch: int | None = None, latent_dim: int = 2, mask: Any = None) -> Pair:
    @contextlib.contextmanager
    def rows(x: Any) -> Iterator[Any]:
        with half.plate("data", len(x), batch=batch) as index, half.mask(mask):
            yield (x if hasattr(x, "requires_grad") else half.xp.asarray(x))[index]

    def model(x: Any) -> None:
        with rows(x) as chosen:
            z = half.sample("z", _standard(half, latent_dim))
            half.sample("x", decoded(half, z, x.shape[-1]), obs=chosen)

    def guide(x: Any) -> None:
        with rows(x) as chosen:
            half.sample("z", encoded(half, chosen, latent_dim))

    return model, guide


def sequences(half: Half) -> Pair:
    """Ragged sequences: a latent per step in plates (time, data), the padding masked."""

    @contextlib.contextmanager
    def plates() -> Iterator[None]:
        mask = np.arange(5)[:, None] < LENGTHS
        with half.plate("data", 4), half.plate("time", 5, dim=-2), half.mask(mask):
            yield

    def model(x: Any) -> None:
        with plates():
            z = half.sample("z", _standard(half))
            half.sample("x", decoded(half, z, 3), obs=half.xp.asarray(x))

    def guide(x: Any) -> None:
        with plates():
            half.sample("z", encoded(half, half.xp.asarray(x)))

    return model, guide


def nested(half: Half) -> Pair:
    """A latent per group and one per item of a group: two stacks of plates."""

    def model(x: Any) -> None:
        with half.plate("groups", 6):
            outer = half.sample("outer", _standard(half))
            with half.plate("items", 4, dim=-2):
                z = half.sample("z", half.dist.Normal(outer, 1.0).to_event(1))
                half.sample("x", decoded(half, z, 3), obs=half.xp.asarray(x))

    def guide(x: Any) -> None:
        x = half.xp.asarray(x)
        with half.plate("groups", 6):
            outer = half.sample("outer", encoded(half, x.mean(-3)))
            with half.plate("items", 4, dim=-2):
                own = encoded(half, x).base_dist
                half.sample("z", half.dist.Normal(own.loc + outer, own.scale).to_event(1))

    return model, guide


def hierarchical(half: Half, *, exact: bool = False) -> Pair:
    """A global latent θ ~ N(0, 1) and local ones z_i ~ N(θ, 1)."""

    def model(x: Any) -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        with half.plate("data", len(x)):
            z = half.sample("z", half.dist.Normal(theta, 1.0))
            normal = half.dist.Normal(z[..., None], half.xp.ones(3)).to_event(1)
            half.sample("x", normal, obs=half.xp.asarray(x))

    def guide(x: Any) -> None:
        theta = half.sample("theta", half.dist.Normal(half.param("theta_loc", 1.5), 0.8))
        with half.plate("data", len(x)):
            loc = theta if exact else half.param("weight", 0.7) * half.xp.asarray(x).mean(-1)
            half.sample("z", half.dist.Normal(loc, 1.0))

    return model, guide


def two_latents(half: Half, *, exact: bool = False) -> Pair:
    """Two latents in one plate with a correlated prior z2 | z1 ~ N(2 z1, 0.5)."""

    def model(x: Any) -> None:
        with half.plate("data", len(x)):
            z1 = half.sample("z1", half.dist.Normal(0.0, 1.0))
            z2 = half.sample("z2", half.dist.Normal(2 * z1, 0.5))
            half.sample("x", half.dist.Normal(z1 + z2, 1.0), obs=x[:, 0])

    def guide(x: Any) -> None:
        with half.plate("data", len(x)):
            weight = half.param("weight", 0.0 if exact else 0.3)
            z1 = half.sample("z1", half.dist.Normal(weight * x[:, 0], 1.0))
            half.sample("z2", half.dist.Normal(2 * z1 if exact else x[:, 1], 0.5))

    return model, guide


def covariate_prior(half: Half, *, exact: bool = False) -> Pair:
    """A prior that depends on covariates: z_i ~ N(3 c_i, 1)."""

    def model(x: Any) -> None:
        with half.plate("data", len(x)):
            z = half.sample("z", half.dist.Normal(3 * x[:, 0], 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=x[:, 1])

    def guide(x: Any) -> None:
        with half.plate("data", len(x)):
            weight = half.param("weight", 3.0 if exact else 1.0)
            half.sample("z", half.dist.Normal(weight * x[:, 0], 1.0))

    return model, guide

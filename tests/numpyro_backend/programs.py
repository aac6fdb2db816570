"""Models and guides that the objectives are tried on, each a (model, guide, args) triple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.primitives import mutable


class Programs(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]


def data(num: int = 12, dim: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim))


def _encoder(x: Array, latent_dim: int) -> tuple[Array, Array]:
    start = jnp.linspace(-0.5, 0.6, x.shape[-1] * latent_dim).reshape(x.shape[-1], latent_dim)
    weight = numpyro.param("encoder", start)
    scale = numpyro.param("scale", jnp.full(latent_dim, 0.4), constraint=constraints.positive)
    return x @ weight, scale


def _decode(z: Array, dim: int) -> Array:
    start = jnp.linspace(0.7, -0.4, z.shape[-1] * dim).reshape(z.shape[-1], dim)
    return jnp.tanh(z) @ numpyro.param("decoder", start)


def vae(*, num: int = 12, batch: int | None = None, latent_dim: int = 2) -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x), subsample_size=batch) as index:
            rows = jnp.asarray(x)[index]
            prior = dist.Normal(jnp.zeros(latent_dim), jnp.ones(latent_dim)).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(_decode(z, x.shape[-1]), 0.7).to_event(1), obs=rows)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x), subsample_size=batch) as index:
            loc, scale = _encoder(jnp.asarray(x)[index], latent_dim)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (data(num),))


def masked_vae(*, num: int = 12) -> Programs:
    model, guide, (x,) = vae(num=num)
    mask = jnp.arange(num) % 3 != 0
    return Programs(handlers.mask(model, mask=mask), handlers.mask(guide, mask=mask), (x,))


def sequences() -> Programs:
    """Ragged sequences: a latent per step in plates (time, data), the padding masked."""
    lengths = jnp.array([5, 3, 1, 4])
    x = data(20).reshape(5, 4, 3)
    mask = jnp.arange(5)[:, None] < lengths

    def model(x: Array) -> None:
        with (
            numpyro.plate("data", 4, dim=-1),
            numpyro.plate("time", 5, dim=-2),
            handlers.mask(mask=mask),
        ):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(_decode(z, 3), 0.7).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with (
            numpyro.plate("data", 4, dim=-1),
            numpyro.plate("time", 5, dim=-2),
            handlers.mask(mask=mask),
        ):
            loc, scale = _encoder(x, 2)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,))


def nested() -> Programs:
    """A latent per group and one per item of a group: two stacks of plates."""
    x = data(24).reshape(4, 6, 3)

    def model(x: Array) -> None:
        with numpyro.plate("groups", 6, dim=-1):
            outer = numpyro.sample("outer", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            with numpyro.plate("items", 4, dim=-2):
                z = numpyro.sample("z", dist.Normal(outer, 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(_decode(z, 3), 0.7).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("groups", 6, dim=-1):
            loc, scale = _encoder(x.mean(-3), 2)
            outer = numpyro.sample("outer", dist.Normal(loc, scale).to_event(1))
            with numpyro.plate("items", 4, dim=-2):
                loc, _ = _encoder(x, 2)
                numpyro.sample("z", dist.Normal(loc + outer, scale).to_event(1))

    return Programs(model, guide, (x,))


def hierarchical(*, num: int = 12, exact: bool = False) -> Programs:
    """A global latent θ ~ N(0, 1) and local ones z_i ~ N(θ, 1)."""

    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z[:, None], jnp.ones(3)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(numpyro.param("theta_loc", 1.5), 0.8))
        with numpyro.plate("data", len(x)):
            loc = theta if exact else numpyro.param("weight", 0.7) * x.mean(-1)
            numpyro.sample("z", dist.Normal(loc, 1.0))

    return Programs(model, guide, (data(num),))


def two_latents(*, num: int = 12, exact: bool = False) -> Programs:
    """Two latents in one plate with a correlated prior z2 | z1 ~ N(2 z1, 0.5)."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = numpyro.sample("z2", dist.Normal(2 * z1, 0.5))
            numpyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            weight = numpyro.param("weight", 0.0 if exact else 0.3)
            z1 = numpyro.sample("z1", dist.Normal(weight * x[:, 0], 1.0))
            numpyro.sample("z2", dist.Normal(2 * z1 if exact else x[:, 1], 0.5))

    return Programs(model, guide, (data(num),))


def covariate_prior(*, num: int = 12, exact: bool = False) -> Programs:
    """A prior that depends on covariates: z_i ~ N(3 c_i, 1)."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(3 * x[:, 0], 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 1])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            weight = numpyro.param("weight", 3.0 if exact else 1.0)
            numpyro.sample("z", dist.Normal(weight * x[:, 0], 1.0))

    return Programs(model, guide, (data(num),))


def auxiliary() -> Programs:
    """A guide with a latent of its own, which the model does not have."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            u = numpyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            numpyro.sample("z", dist.Normal(numpyro.param("weight", 0.4) * u, 1.0))

    return Programs(model, guide, (data(),))


def counting(num: int) -> tuple[Programs, list[str]]:
    """A model with a mutable site that counts its runs and takes in what they drew."""
    calls: list[str] = []

    def model(x: Array) -> None:
        calls.append("model")
        state = mutable("state", {"runs": jnp.zeros(()), "z": jnp.zeros(num)})
        with numpyro.plate("data", num):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        state["runs"] = state["runs"] + 1
        state["z"] = z

    def guide(x: Array) -> None:
        with numpyro.plate("data", num):
            numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.5), 1.0))

    return Programs(model, guide, (np.arange(float(num)),)), calls

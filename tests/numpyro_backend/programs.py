"""Models and guides that the objectives are tried on, each a (model, guide, args) triple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.primitives import mutable

from tests import data_programs as shared
from tests.numpyro_backend.half import NUMPYRO


class Programs(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]


def data(num: int = 12, dim: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim))


def vae(*, num: int = 12, batch: int | None = None, latent_dim: int = 2) -> Programs:
    return Programs(*shared.vae(NUMPYRO, batch=batch, latent_dim=latent_dim), (data(num),))


def masked_vae(*, num: int = 12) -> Programs:
    return Programs(*shared.vae(NUMPYRO, mask=np.arange(num) % 3 != 0), (data(num),))


def sequences() -> Programs:
    return Programs(*shared.sequences(NUMPYRO), (data(20).reshape(5, 4, 3),))


def nested() -> Programs:
    return Programs(*shared.nested(NUMPYRO), (data(24).reshape(4, 6, 3),))


def hierarchical(*, num: int = 12, exact: bool = False) -> Programs:
    return Programs(*shared.hierarchical(NUMPYRO, exact=exact), (data(num),))


def two_latents(*, num: int = 12, exact: bool = False) -> Programs:
    return Programs(*shared.two_latents(NUMPYRO, exact=exact), (data(num),))


def covariate_prior(*, num: int = 12, exact: bool = False) -> Programs:
    return Programs(*shared.covariate_prior(NUMPYRO, exact=exact), (data(num),))


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

"""Programs whose code has a known information about the data."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

from numpyro_backend.diagnostics import aggregated_posterior
from tests.numpyro_backend.programs import Programs


def correlated(
    x: Any, *, information: float, batch: int | None = None, kept: Any = None
) -> Programs:
    """A guide whose code has the given information in nats about standard normal data."""
    num, dims = x.shape
    rho = math.sqrt(1 - math.exp(-2 * information / dims))
    kept = jnp.ones(num, bool) if kept is None else kept

    def model(x: Array) -> None:
        plate = numpyro.plate("data", num, subsample_size=batch)
        with plate as index, handlers.mask(mask=kept[index]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(dims), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        slope = numpyro.param("slope", rho)
        plate = numpyro.plate("data", num, subsample_size=batch)
        with plate as index, handlers.mask(mask=kept[index]):
            loc = slope * jnp.asarray(x)[index]
            numpyro.sample("z", dist.Normal(loc, math.sqrt(1 - rho**2)).to_event(1))

    return Programs(model, guide, (x,))


def aggregated(case: Programs, *, seed: int = 0, params: Any = None, **settings: Any) -> Any:
    key = jax.random.key(seed)
    return aggregated_posterior(key, params or {}, case.model, case.guide, *case.args, **settings)

"""Programs for ArviZ, and what is asked of the data that come of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal

from numpyro_backend.inference_data import to_inference_data
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz", exc_type=ImportError)
    plt = pytest.importorskip("matplotlib.pyplot")


GROUPS = [
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
]
SAMPLE = ("chain", "draw")
NOISE = 0.5


def run(case: Programs, **settings: Any) -> Any:
    params = settings.pop("params", {})
    settings = {"num_samples": 20, **settings}
    key = jax.random.key(0)
    return to_inference_data(key, params, case.model, case.guide, *case.args, **settings)


def dims(data: Any, group: str) -> dict[str, tuple[str, ...]]:
    return {name: values.dims for name, values in data[group].data_vars.items()}


def normals(mask: Any = True) -> Programs:
    """z_i ~ N(0, 1), x_i ~ N(z_i, 0.5²), and the posterior N(0.8 x_i, 0.2) as the guide."""
    x = programs.data()[:, 0]

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with handlers.mask(mask=mask):
                numpyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    return Programs(model, guide, (x,))


def schools() -> tuple[Programs, dict[str, Any]]:
    """Eight schools, not centred, and the parameters of its guide."""
    effects = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = numpyro.deterministic("theta", mu + tau * eta)
            numpyro.sample("effect", dist.Normal(theta, errors), obs=effects)

    guide = AutoNormal(model)
    trace = handlers.trace(handlers.seed(guide, 0)).get_trace()
    params = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    return Programs(model, guide, ()), params


def normal_log_prob(x: np.ndarray, loc: np.ndarray, scale: float) -> np.ndarray:
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


PROGRAMS: dict[str, Callable[[], Programs]] = {
    "minibatch": lambda: programs.vae(batch=5),
    "nested": programs.nested,
    "sequences": programs.sequences,
    "hierarchical": programs.hierarchical,
}
CHUNK_SIZES = {"minibatch": 3, "nested": 1}


@cache
def drawn(name: str) -> Any:
    """Four draws from one of the programs, whose scale must not count."""
    model, guide, args = PROGRAMS[name]()
    scaled = Programs(handlers.scale(model, scale=3.0), guide, args)
    return run(scaled, num_samples=4, chunk_size=CHUNK_SIZES.get(name))

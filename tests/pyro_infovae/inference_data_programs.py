"""Programs for ArviZ, and what is asked of the data that come of them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_infovae.inference_data import to_inference_data
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

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


def run(case: Programs, **settings: Any) -> Any:
    settings = {"num_samples": 20, **settings}
    return to_inference_data(case.model, case.guide, *case.args, **settings)


def dims(data: Any, group: str) -> dict[str, tuple[str, ...]]:
    return {name: values.dims for name, values in data[group].data_vars.items()}


def schools() -> Programs:
    """Eight schools, not centred: a latent per school and a deterministic effect."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("effect", dist.Normal(theta, errors), obs=effects)

    return Programs(model, AutoNormal(model), ())


NOISE = 0.5


def normals(mask: Tensor | None = None) -> Programs:
    """z_i ~ N(0, 1), x_i ~ N(z_i, 0.5²), and the posterior N(0.8 x_i, 0.2) as the guide."""
    x = programs.data()[:, 0]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=True if mask is None else mask):
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    return Programs(model, guide, (x,))


def normal_log_prob(x: np.ndarray, loc: np.ndarray, scale: float) -> np.ndarray:
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)

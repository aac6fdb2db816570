"""Programs whose code has a known information about the data."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.pyro_infovae.programs import Programs


def correlated(x: Tensor, *, information: float, batch: int | None = None) -> Programs:
    """A guide whose code has the given information in nats about standard normal data."""
    dims = x.shape[1]
    rho = math.sqrt(1 - math.exp(-2 * information / dims))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(rho))
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            scale = math.sqrt(1 - rho**2)
            pyro.sample("z", dist.Normal(slope * x[index], scale).to_event(1))

    return Programs(model, guide, (x,))

"""Models and guides that the objectives are tried on, each a (model, guide, args) triple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests import data_programs as shared
from tests.pyro_infovae.half import PYRO


class Programs(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]


def data(num: int = 12, dim: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64)


def vae(*, num: int = 12, batch: int | None = None, latent_dim: int = 2) -> Programs:
    return Programs(*shared.vae(PYRO, batch=batch, latent_dim=latent_dim), (data(num),))


def masked_vae(*, num: int = 12) -> Programs:
    return Programs(*shared.vae(PYRO, mask=np.arange(num) % 3 != 0), (data(num),))


def sequences() -> Programs:
    return Programs(*shared.sequences(PYRO), (data(20).reshape(5, 4, 3),))


def nested() -> Programs:
    return Programs(*shared.nested(PYRO), (data(24).reshape(4, 6, 3),))


def hierarchical(*, num: int = 12, exact: bool = False) -> Programs:
    return Programs(*shared.hierarchical(PYRO, exact=exact), (data(num),))


def two_latents(*, num: int = 12, exact: bool = False) -> Programs:
    return Programs(*shared.two_latents(PYRO, exact=exact), (data(num),))


def covariate_prior(*, num: int = 12, exact: bool = False) -> Programs:
    return Programs(*shared.covariate_prior(PYRO, exact=exact), (data(num),))


def mixture(*, learned_prior: bool = False, enumerate_in_model: bool = False) -> Programs:
    """A discrete latent y and z | y, with y enumerated in the guide or summed out in the model."""

    def model(x: Tensor) -> None:
        means = pyro.param("means", torch.tensor([-1.0, 0.0, 2.0]))
        with pyro.plate("data", len(x)):
            infer = {"enumerate": "parallel"} if enumerate_in_model else {}
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=infer)
            z = pyro.sample("z", dist.Normal(means[y] if learned_prior else 0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            weight = pyro.param("weight", torch.tensor(0.8))
            if enumerate_in_model:
                pyro.sample("z", dist.Normal(weight * x[:, 0], 0.4))
            else:
                logits = torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 1]], -1) * weight
                y = pyro.sample("y", dist.Categorical(logits=logits))
                pyro.sample("z", dist.Normal(weight * x[:, 0] + y - 1, 0.4))

    return Programs(model, guide, (data(),))

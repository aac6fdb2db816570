"""Models and guides that the objectives are tried on, each a (model, guide, args) triple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor


class Programs(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]


def data(num: int = 12, dim: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64)


def _encoder(x: Tensor, latent_dim: int) -> tuple[Tensor, Tensor]:
    start = torch.linspace(-0.5, 0.6, x.shape[-1] * latent_dim).reshape(x.shape[-1], latent_dim)
    weight = pyro.param("encoder", start.clone())
    scale = pyro.param("scale", torch.full((latent_dim,), 0.4), constraint=constraints.positive)
    return x @ weight, scale


def _decode(z: Tensor, dim: int) -> Tensor:
    start = torch.linspace(0.7, -0.4, z.shape[-1] * dim).reshape(z.shape[-1], dim)
    return torch.tanh(z) @ pyro.param("decoder", start.clone())


def vae(*, num: int = 12, batch: int | None = None, latent_dim: int = 2) -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            rows = x[index]
            prior = dist.Normal(x.new_zeros(latent_dim), x.new_ones(latent_dim)).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(_decode(z, x.shape[-1]), 0.7).to_event(1), obs=rows)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            loc, scale = _encoder(x[index], latent_dim)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (data(num),))


def masked_vae(*, num: int = 12) -> Programs:
    model, guide, (x,) = vae(num=num)
    mask = torch.arange(num) % 3 != 0
    return Programs(poutine.mask(model, mask=mask), poutine.mask(guide, mask=mask), (x,))


def sequences() -> Programs:
    """Ragged sequences: a latent per step in plates (time, data), the padding masked."""
    lengths = torch.tensor([5, 3, 1, 4])
    x = data(20).reshape(5, 4, 3)
    mask = torch.arange(5).unsqueeze(-1) < lengths

    def model(x: Tensor) -> None:
        with pyro.plate("data", 4, dim=-1), pyro.plate("time", 5, dim=-2), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(_decode(z, 3), 0.7).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 4, dim=-1), pyro.plate("time", 5, dim=-2), poutine.mask(mask=mask):
            loc, scale = _encoder(x, 2)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Programs(model, guide, (x,))


def nested() -> Programs:
    """A latent per group and one per item of a group: two stacks of plates."""
    x = data(24).reshape(4, 6, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("groups", 6, dim=-1):
            outer = pyro.sample("outer", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("items", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(outer, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(_decode(z, 3), 0.7).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("groups", 6, dim=-1):
            loc, scale = _encoder(x.mean(-3), 2)
            outer = pyro.sample("outer", dist.Normal(loc, scale).to_event(1))
            with pyro.plate("items", 4, dim=-2):
                loc, _ = _encoder(x, 2)
                pyro.sample("z", dist.Normal(loc + outer, scale).to_event(1))

    return Programs(model, guide, (x,))


def hierarchical(*, num: int = 12, exact: bool = False) -> Programs:
    """A global latent θ ~ N(0, 1) and local ones z_i ~ N(θ, 1)."""

    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), x.new_ones(3)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(pyro.param("theta_loc", x.new_tensor(1.5)), 0.8))
        with pyro.plate("data", len(x)):
            loc = theta if exact else pyro.param("weight", x.new_tensor(0.7)) * x.mean(-1)
            pyro.sample("z", dist.Normal(loc, 1.0))

    return Programs(model, guide, (data(num),))


def two_latents(*, num: int = 12, exact: bool = False) -> Programs:
    """Two latents in one plate with a correlated prior z2 | z1 ~ N(2 z1, 0.5)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(2 * z1, 0.5))
            pyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            weight = pyro.param("weight", torch.tensor(0.0 if exact else 0.3))
            z1 = pyro.sample("z1", dist.Normal(weight * x[:, 0], 1.0))
            pyro.sample("z2", dist.Normal(2 * z1 if exact else x[:, 1], 0.5))

    return Programs(model, guide, (data(num),))


def covariate_prior(*, num: int = 12, exact: bool = False) -> Programs:
    """A prior that depends on covariates: z_i ~ N(3 c_i, 1)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(3 * x[:, 0], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 1])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            weight = pyro.param("weight", torch.tensor(3.0 if exact else 1.0))
            pyro.sample("z", dist.Normal(weight * x[:, 0], 1.0))

    return Programs(model, guide, (data(num),))


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

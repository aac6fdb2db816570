"""Programs and objectives for training by several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae import (
    ConcatCritic,
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from pyro_infovae.groups import Group, Rows
from pyro_infovae.penalised_elbo import PenalisedELBO

DIM, LATENT, ITEMS = 5, 2, 7


class Model(nn.Module):
    """A prior that depends on covariates and is learned, a decoder, and perhaps masked data."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.tensor([0.4, -0.2]))
        weight = torch.linspace(0.7, -0.4, LATENT * DIM).reshape(LATENT, DIM)
        self.decoder = nn.Parameter(weight)
        self.masked = masked

    def forward(self, x: Tensor, rows: Tensor) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(x), subsample=rows), poutine.mask(mask=_mask(rows, self)):
            loc = x[rows, :1] * self.prior
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            fn = dist.Normal(torch.tanh(z) @ self.decoder, 0.7).to_event(1)
            pyro.sample("x", fn, obs=x[rows])


class Guide(nn.Module):
    """A linear encoder."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        weight = torch.linspace(-0.5, 0.6, DIM * LATENT).reshape(DIM, LATENT)
        self.encoder = nn.Parameter(weight)
        self.log_scale = nn.Parameter(torch.full((LATENT,), -1.0))
        self.masked = masked

    def forward(self, x: Tensor, rows: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x), subsample=rows), poutine.mask(mask=_mask(rows, self)):
            loc = x[rows] @ self.encoder
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()).to_event(1))


def _mask(rows: Tensor, program: Model | Guide) -> Tensor | bool:
    return rows % 3 != 0 if program.masked else True


class MixtureModel(nn.Module):
    """A discrete latent y, and z | y."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 2.0]))

    def forward(self, x: Tensor, rows: Tensor) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(x), subsample=rows):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])))
            z = pyro.sample("z", dist.Normal(self.means[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows, 0])


class MixtureGuide(nn.Module):
    """Both latents, y enumerated: the rows of z have weights that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8))

    @config_enumerate
    def forward(self, x: Tensor, rows: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x), subsample=rows):
            first = x[rows, 0]
            logits = torch.stack([first, -first], -1) * self.weight
            y = pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(self.weight * first + y, 0.4))


class NestedModel(nn.Module):
    """A latent per datum, and one per item of it."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.6))

    def forward(self, x: Tensor, rows: Tensor) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(x), subsample=rows, dim=-1):
            outer = pyro.sample("outer", dist.Normal(0.0, 1.0))
            with pyro.plate("items", ITEMS, dim=-2):
                z = pyro.sample("z", dist.Normal(self.slope * outer, 1.0))
                pyro.sample("x", dist.Normal(z, 0.7), obs=_items(x[rows]))


class NestedGuide(nn.Module):
    """Independent normals."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.6]))

    def forward(self, x: Tensor, rows: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x), subsample=rows, dim=-1):
            pyro.sample("outer", dist.Normal(self.weight[0] * x[rows, 0], 0.5))
            with pyro.plate("items", ITEMS, dim=-2):
                pyro.sample("z", dist.Normal(self.weight[1] * _items(x[rows]), 0.5))


def _items(x: Tensor) -> Tensor:
    return x.mean(-1) * torch.linspace(0.5, 1.5, ITEMS)[:, None]


Programs: TypeAlias = tuple[nn.Module, nn.Module]
Objective: TypeAlias = Callable[[bool], ELBO]


def vae(*, masked: bool = False) -> Programs:
    return Model(masked=masked), Guide(masked=masked)


def _concat() -> nn.Module:
    return ConcatCritic(DIM, LATENT, hidden=(8,))


def _separable() -> nn.Module:
    return SeparableCritic(DIM, LATENT, embed_dim=4, hidden=(8,))


def _random_moments(rows: Rows) -> Tensor:
    """A penalty that draws, and sees the data and the weights."""
    direction = torch.randint(1, 9, (LATENT,)).to(rows.values)
    weights = torch.ones(len(rows.values)) if rows.weights is None else rows.weights
    projected = rows.values @ direction + rows.data["x"].mean(-1)
    return rows.num_data * ((weights * projected).sum() / weights.sum()).square()


@dataclass(frozen=True)
class Case:
    """An objective, given whether it gathers, and what it trains."""

    objective: Objective
    programs: Callable[[], Programs] = vae
    train: str = "ddp"


def _masked() -> Programs:
    return vae(masked=True)


class _Spread(PenalisedELBO):
    """How far the rows are spread around the prior's mean: no sum over the ranks."""

    kl_weight = 1.0

    def penalty(self, groups: list[Group]) -> Tensor:
        (group,) = groups
        return (group.posterior.values - group.prior().values.mean(0)).square().mean().sqrt()


CASES = {
    "mmd": Case(lambda g: TraceMMD_ELBO(0.5, 10.0, gather=g)),
    "mmd, masks, particles, biased": Case(
        lambda g: TraceMMD_ELBO(
            0.0, 10.0, estimator="biased", prior_draws=3, num_particles=2, gather=g
        ),
        _masked,
    ),
    "mmd, vectorised particles, unbiased": Case(
        lambda g: TraceMMD_ELBO(
            1.0, 10.0, num_particles=2, vectorize_particles=True, max_plate_nesting=1, gather=g
        ),
        _masked,
    ),
    "mmd, particles, closed form": Case(
        lambda g: TraceMMD_ELBO(0.0, 10.0, estimator="closed_form", num_particles=2, gather=g),
    ),
    "mmd, weighted rows": Case(
        lambda g: TraceMMD_ELBO(0.0, 10.0, base=TraceEnum_ELBO(max_plate_nesting=1), gather=g),
        lambda: (MixtureModel(), MixtureGuide()),
    ),
    "mmd, nested plates": Case(
        lambda g: TraceMMD_ELBO(0.5, 10.0, gather=g), lambda: (NestedModel(), NestedGuide())
    ),
    "mmd, regularizer": Case(
        lambda g: TraceMMD_ELBO(regularizer=_random_moments, lambd=10.0, gather=g), _masked
    ),
    "mmd, no tensor loss": Case(
        lambda g: TraceMMD_ELBO(0.5, 10.0, base=TraceGraph_ELBO(), gather=g), vae, "svi"
    ),
    "mmd over hamiltonian": Case(
        lambda g: TraceMMD_ELBO(
            0.5, 10.0, base=TraceHamiltonian_ELBO(num_steps=2, step_size=0.05), gather=g
        )
    ),
    "a subclass that knows of no ranks": Case(lambda g: _Spread(gather=g)),
    "infomax": Case(lambda g: TraceInfoMax_ELBO(_concat(), alpha=0.5, gather=g)),
    "infomax, masks, particles, all pairs": Case(
        lambda g: TraceInfoMax_ELBO(
            _separable(), bound="dv", negatives="all", num_particles=2, gather=g
        ),
        _masked,
    ),
    "infomax, svi": Case(
        lambda g: TraceInfoMax_ELBO(_concat(), bound="infonce", num_particles=2, gather=g),
        _masked,
        "svi",
    ),
    "hamiltonian": Case(
        lambda g: TraceHamiltonian_ELBO(num_steps=3, step_size=0.05, num_particles=2), _masked
    ),
}

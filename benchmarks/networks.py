"""The variational autoencoder of Kingma and Welling, one hidden layer each way, for Pyro."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Size(NamedTuple):
    """The widths of the data, of both hidden layers and of the code."""

    pixels: int
    hidden: int
    latent: int

    def __str__(self) -> str:
        """Such as 64-128-8."""
        return "-".join(map(str, self))


def binary_images(rows: int, size: Size) -> Tensor:
    """Images of no meaning, of which a fifth is ink."""
    return torch.bernoulli(torch.full((rows, size.pixels), 0.2))


class VAE(nn.Module):
    """Model and guide of binary images."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.latent = size.latent
        self.encoder = nn.Sequential(nn.Linear(size.pixels, size.hidden), nn.Softplus())
        self.loc = nn.Linear(size.hidden, size.latent)
        self.log_scale = nn.Linear(size.hidden, size.latent)
        self.decoder = nn.Sequential(
            nn.Linear(size.latent, size.hidden), nn.Softplus(), nn.Linear(size.hidden, size.pixels)
        )

    def name(self, part: str) -> str:
        """A name that no other autoencoder has in the param store."""
        return f"{part}_{id(self)}"

    def model(self, x: Tensor) -> None:
        """Draw codes, and score the pixels."""
        pyro.module(self.name("decoder"), self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw codes given the pixels."""
        for part in ("encoder", "loc", "log_scale"):
            pyro.module(self.name(part), getattr(self, part))
        with pyro.plate("data", len(x)):
            hidden = self.encoder(x)
            normal = dist.Normal(self.loc(hidden), self.log_scale(hidden).exp())
            pyro.sample("z", normal.to_event(1))

"""An autoencoder of digits, with a code of ten numbers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.flow_harm.program import Case, Framework, Program

ROWS, PIXELS, HIDDEN, CODE = 300, 64, 64, 10


def autoencoder(framework: Framework) -> Case:
    """64-64-10, Bernoulli."""
    decoder = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * CODE))
    x = torch.as_tensor(load_digits().data[:ROWS] > 7).to(torch.get_default_dtype())

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", ROWS):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (x,))


PROGRAMS = [Program("VAE, code of 10", autoencoder, lr=0.01, frameworks=("Pyro",))]

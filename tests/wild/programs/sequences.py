"""Latents in a loop: sequences, padded or not, and images of several objects."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from tests.halves import Case
from tests.wild.programs.program import N, Program, Refused, Works, bits, net, normals

T_MAX, D = 3, 4


class _DMM(nn.Module):
    """A deep Markov model, whose KL is annealed."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded = padded
        self.transition, self.emission, self.combiner = net(2, 8, 4), net(2, 8, D), net(7, 8, 4)
        self.rnn = nn.RNN(D, 5, batch_first=True)
        self.start, self.before = (nn.Parameter(torch.zeros(2)) for _ in range(2))

    def masked(self, fn: Any, mask: Tensor, t: int) -> Any:
        return fn.mask(mask[:, t : t + 1]) if self.padded else fn

    def model(self, x: Tensor, mask: Tensor, annealing: float) -> None:
        pyro.module("dmm", self)
        z = self.start.expand(len(x), 2)
        with pyro.plate("minibatch", len(x)):
            for t in pyro.markov(range(T_MAX)):
                loc, log_scale = self.transition(z).chunk(2, -1)
                fn = dist.Normal(z + loc, log_scale.exp())
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", self.masked(fn, mask, t).to_event(1))
                fn = dist.Bernoulli(logits=self.emission(z))
                pyro.sample(f"x_{t}", self.masked(fn, mask, t).to_event(1), obs=x[:, t])

    def guide(self, x: Tensor, mask: Tensor, annealing: float) -> None:
        pyro.module("dmm", self)
        hidden = self.rnn(x.flip(1))[0].flip(1)
        z = self.before.expand(len(x), 2)
        with pyro.plate("minibatch", len(x)):
            for t in pyro.markov(range(T_MAX)):
                loc, log_scale = self.combiner(torch.cat([z, hidden[:, t]], -1)).chunk(2, -1)
                fn = dist.Normal(loc, log_scale.exp())
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", self.masked(fn, mask, t).to_event(1))


def dmm() -> Case:
    programs = _DMM(padded=False)
    args = (bits(N, T_MAX, D), torch.ones(N, T_MAX, dtype=torch.bool), 0.5)
    return Case(programs.model, programs.guide, args)


def padded_dmm() -> Case:
    programs = _DMM(padded=True)
    lengths = 1 + torch.arange(2 * N) % T_MAX
    mask = torch.arange(T_MAX) < lengths[:, None]
    return Case(programs.model, programs.guide, (bits(2 * N, T_MAX, D), mask, 0.5))


def air() -> Case:
    """Objects one by one: z_pres ends the list, and masks what an absent object would be."""
    encoder, decoder, steps = net(D + 1, 8, 7), net(3, 8, D), 2

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            present, canvas = torch.ones(len(x), 1), torch.zeros(len(x), D)
            for t in range(steps):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.6 * present).to_event(1))
                where = dist.Normal(torch.zeros(len(x), 1), 1.0).mask(present).to_event(1)
                what = dist.Normal(torch.zeros(len(x), 2), 1.0).mask(present).to_event(1)
                where, what = pyro.sample(f"z_where_{t}", where), pyro.sample(f"z_what_{t}", what)
                canvas = canvas + present * decoder(torch.cat([where, what], -1))
            pyro.sample("obs", dist.Normal(canvas, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            present = torch.ones(len(x), 1)
            for t in range(steps):
                out = encoder(torch.cat([x, torch.full_like(present, t)], -1))
                present = pyro.sample(
                    f"z_pres_{t}",
                    dist.Bernoulli(torch.sigmoid(out[:, :1]) * present).to_event(1),
                    infer={"baseline": {"use_decaying_avg_baseline": True}},
                )
                where = dist.Normal(out[:, 1:2], out[:, 2:3].exp()).mask(present).to_event(1)
                what = dist.Normal(out[:, 3:5], out[:, 5:].exp()).mask(present).to_event(1)
                pyro.sample(f"z_where_{t}", where)
                pyro.sample(f"z_what_{t}", what)

    return Case(model, guide, (normals(2 * N, D),))


def sequential_plate() -> Case:
    """The data one after the other, as in the first part of Pyro's tutorial."""

    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=x[i])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(slope * x[i], 0.5))

    return Case(model, guide, (normals(5),))


def _sequences(x: Tensor, mask: Tensor, annealing: float) -> Tensor:
    return x.flatten(1)


CONTINUOUS = ("z_where_0", "z_what_0", "z_where_1", "z_what_1")
PROGRAMS = [
    Program(
        name="deep Markov model",
        like="Pyro's `dmm.py`",
        make=dmm,
        stock=TraceMeanField_ELBO,
        critic=(T_MAX * D, 2 * T_MAX),
        mmd=Works(),
        infomax=Works({"data": _sequences}, otherwise=r"one observed site.*pass data="),
        hamiltonian=Works(),
    ),
    Program(
        name="deep Markov model, padded, a mask per step",
        like="Pyro's `dmm.py`",
        make=padded_dmm,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works({"sites": ["z_0"], "data": "x_0"}, otherwise=r"choose by sites"),
        hamiltonian=Works(),
    ),
    Program(
        name="attend, infer, repeat",
        like="Pyro's `air`",
        make=air,
        stock=TraceGraph_ELBO,
        needs_base=True,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works({"sites": ["z_what_0"]}, otherwise=r"choose by sites"),
        hamiltonian=Works(
            {"sites": CONTINUOUS}, otherwise=r"'z_pres_0' is not reparameterised.*name others"
        ),
    ),
    Program(
        name="a plate run datum by datum",
        like="Pyro's SVI tutorial, part II",
        make=sequential_plate,
        stock=TraceMeanField_ELBO,
        mmd=Refused(r"'data'.*vectorised plate", "its rows are sites of their own"),
        infomax=Refused(r"'data'.*vectorised plate", "its rows are sites of their own"),
        hamiltonian=Works(),
    ),
]

"""Time of a training step: by hand, by Pyro's SVI, and by CompiledSVI.

Variational autoencoders 64-128-8 and 784-400-20, minibatches of 128. Run by hand:
``python benchmarks/compiled_step.py``. Writes ``benchmarks/compiled_step.md``.
"""

import datetime
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_infovae import (
    ConcatCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
    __version__,
)
from pyro_infovae.compile import CompiledSVI

BATCH, LAMBDA, NUM_STEPS = 128, 1000.0, 3
ROUNDS, STEPS, WARMUP = 20, 5, 5
Step = Callable[[], float]
T = TypeVar("T")


class Size(NamedTuple):
    """The widths of the data, of both hidden layers and of the code."""

    pixels: int
    hidden: int
    latent: int


MakeStep = Callable[[Size, Tensor], Step]
SIZES = (Size(64, 128, 8), Size(784, 400, 20))


class VAE(nn.Module):
    """The autoencoder of Kingma and Welling, one hidden layer each way."""

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

    def elbo_and_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The negative ELBO with its KL in closed form, and a draw of the codes."""
        hidden = self.encoder(x)
        loc, log_scale = self.loc(hidden), self.log_scale(hidden)
        scale = log_scale.exp()
        z = loc + scale * torch.randn_like(loc)
        kl = (0.5 * (loc**2 + scale**2 - 1) - log_scale).sum()
        return binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl, z


def mmd_squared(z: Tensor, prior: Tensor) -> Tensor:
    """The unbiased estimator with the default kernel, by one matrix product."""
    n, d = z.shape
    rows = torch.cat([z, prior])
    squares = (rows**2).sum(1)
    distances = (squares[:, None] + squares - 2 * rows @ rows.T).clamp_min(0.0)
    kernel = (-distances / (2 * d)).exp()

    def mean(block: Tensor) -> Tensor:
        return (block.sum() - block.diagonal().sum()) / (n * (n - 1))

    return mean(kernel[:n, :n]) + mean(kernel[n:, n:]) - 2 * mean(kernel[:n, n:])


def by_hand(objective: str, size: Size, x: Tensor) -> Step:
    """The loop that one writes in PyTorch alone, for the same networks and objective."""
    vae = VAE(size)
    critic = nn.Sequential(
        nn.Linear(size.pixels + size.latent, size.hidden), nn.ReLU(), nn.Linear(size.hidden, 1)
    )
    modules = nn.ModuleList([vae, critic] if objective == "InfoMax" else [vae])
    optimiser = torch.optim.Adam(modules.parameters(), lr=1e-3)

    def loss_of(z: Tensor, elbo: Tensor) -> tuple[Tensor, Tensor]:
        if objective == "MMD":
            loss = elbo + BATCH * (LAMBDA - 1) * mmd_squared(z, torch.randn_like(z))
            return loss, loss
        # The critic's gradient is that of the information, the encoder's is BATCH times it.
        scaled = z + (BATCH - 1) * (z - z.detach())
        shifted = scaled.roll(int(torch.randint(1, BATCH, ())), 0)
        joint, marginal = (critic(torch.cat([x, code], 1)) for code in (scaled, shifted))
        information = joint.mean() - (marginal - 1).exp().mean()
        return elbo - information, elbo - BATCH * information

    def step() -> float:
        elbo, z = vae.elbo_and_code(x)
        surrogate, loss = loss_of(z, elbo)
        optimiser.zero_grad()
        surrogate.backward()
        optimiser.step()
        return loss.item()

    return step


def objective_of(name: str, size: Size, owner: str) -> ELBO:
    """The objective under test, its parameters named after an owner."""
    if name == "MMD":
        return TraceMMD_ELBO(lambd=LAMBDA)
    if name == "Hamiltonian":
        return TraceHamiltonian_ELBO(NUM_STEPS, 0.05, name=f"hamiltonian_{owner}")
    critic = ConcatCritic(size.pixels, size.latent, hidden=(size.hidden,))
    return TraceInfoMax_ELBO(critic, name=f"critic_{owner}")


def by_svi(svi: Callable[..., Any], optim: Callable[[], Any], objective: str) -> MakeStep:
    """Steps of Pyro's or of the compiled SVI on an autoencoder of its own."""

    def make(size: Size, x: Tensor) -> Step:
        vae = VAE(size)
        stock = objective == "ELBO"
        loss = TraceMeanField_ELBO() if stock else objective_of(objective, size, str(id(vae)))
        return partial(svi(vae.model, vae.guide, optim(), loss).step, x)

    return make


def adam() -> Any:
    """Pyro's Adam: one optimiser of torch per parameter."""
    return pyro.optim.Adam({"lr": 1e-3})


def fused() -> Any:
    """One Adam of torch for all parameters."""
    return partial(torch.optim.Adam, lr=1e-3, fused=True)


def contenders(objective: str) -> dict[str, MakeStep]:
    """The ways to take a step, the first of which is the measure of the others."""
    ours = {
        "SVI": by_svi(SVI, adam, objective),
        "CompiledSVI": by_svi(CompiledSVI, adam, objective),
        "CompiledSVI, fused Adam": by_svi(CompiledSVI, fused, objective),
        "CompiledSVI, fused Adam, inductor": by_svi(
            partial(CompiledSVI, backend="inductor"), fused, objective
        ),
    }
    if objective == "Hamiltonian":
        return ours
    hand = {"by hand": partial(by_hand, objective)}
    return {**hand, "SVI, stock TraceMeanField_ELBO": by_svi(SVI, adam, "ELBO"), **ours}


def milliseconds(objective: str, size: Size) -> dict[str, float]:
    """The median time of a step by contender, runs interleaved."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((BATCH, size.pixels), 0.2))
    steps = {name: make(size, x) for name, make in contenders(objective).items()}
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()  # what the one before has left in the caches
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def table(objective: str) -> list[str]:
    """The times of an objective, a column per size."""
    times = [in_new_process(milliseconds, objective, size) for size in SIZES]
    first = next(iter(times[0]))
    widths = ["-".join(map(str, size)) for size in SIZES]
    header = " | ".join(f"{width}, ms | against {first}" for width in widths)
    rows = [
        f"| {name} | "
        + " | ".join(f"{column[name]:.2f} | {column[name] / column[first]:.2f}" for column in times)
        + " |"
        for name in times[0]
    ]
    return [f"| {objective} | {header} |", "|---|---|---|---|---|", *rows, ""]


def main() -> None:
    """Measure, and write the tables."""
    text = "\n".join(
        [
            "# Training steps: by hand, by SVI and by CompiledSVI",
            "",
            f"VAEs of the widths above the columns on minibatches of {BATCH}, float32, one thread."
            f" Times are medians of {ROUNDS * STEPS} steps,",
            "runs interleaved. `by hand` is a loop in PyTorch alone with the same networks, the"
            " KL in closed form and the same penalty (the MMD",
            "by one matrix product), under `torch.optim.Adam`; `SVI` and the first `CompiledSVI`"
            " use Pyro's Adam, which steps every parameter by itself.",
            f"The Hamiltonian objective takes {NUM_STEPS} leapfrog steps.",
            "",
            *table("MMD"),
            *table("InfoMax"),
            *table("Hamiltonian"),
            f"pyro-infovae {__version__}, torch {torch.__version__}, pyro {pyro.__version__},"
            f" Python {platform.python_version()}; {platform.platform()}, {os.cpu_count()} CPUs;"
            f" {datetime.date.today().isoformat()}.",
            "Written by `python benchmarks/compiled_step.py`.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

"""Peak memory and time of a TraceHamiltonian_ELBO step against its number of leapfrog steps.

A variational autoencoder 784-400-20 on 1024 rows. Run by hand:
``python benchmarks/hamiltonian_cost.py``. Writes ``benchmarks/hamiltonian_cost.md``.
"""

import datetime
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pyro_infovae import TraceHamiltonian_ELBO, __version__

PIXELS, HIDDEN, LATENT, ROWS = 784, 400, 20, 1024
NUM_STEPS = (1, 2, 3, 5, 10)
ROUNDS = 15
T = TypeVar("T")


class VAE(nn.Module):
    """The autoencoder of Kingma and Welling, one hidden layer each way."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus())
        self.loc = nn.Linear(HIDDEN, LATENT)
        self.log_scale = nn.Linear(HIDDEN, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS)
        )

    def model(self, x: Tensor) -> None:
        """Draw codes, and score the pixels."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw codes given the pixels."""
        pyro.module("encoder", self.encoder)
        pyro.module("loc", self.loc)
        pyro.module("log_scale", self.log_scale)
        with pyro.plate("data", len(x)):
            hidden = self.encoder(x)
            normal = dist.Normal(self.loc(hidden), self.log_scale(hidden).exp())
            pyro.sample("z", normal.to_event(1))


def objective(num_steps: int) -> ELBO:
    """The objective with that many leapfrog steps; none is the stock ELBO."""
    if num_steps == 0:
        return Trace_ELBO()
    return TraceHamiltonian_ELBO(num_steps, 0.05, name=f"hamiltonian_{num_steps}")


def training_step(num_steps: int, vae: VAE, x: Tensor) -> Callable[[], float]:
    """Return a step of SVI that has been warmed up."""
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=objective(num_steps))
    for _ in range(2):
        svi.step(x)
    return lambda: svi.step(x)


def pixels() -> Tensor:
    """Draw binary data."""
    return torch.bernoulli(torch.full((ROWS, PIXELS), 0.2))


def peak_megabytes(num_steps: int) -> float:
    """Return the most that torch's allocator holds in one step above what it held before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = training_step(num_steps, VAE(), pixels())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        step()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def milliseconds() -> dict[int, float]:
    """Return the median time of a step by number of leapfrog steps, runs interleaved."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae, x = VAE(), pixels()
    steps = {k: training_step(k, vae, x) for k in (0, *NUM_STEPS)}
    times: dict[int, list[float]] = {k: [] for k in steps}
    for _ in range(ROUNDS):
        for k, step in steps.items():
            start = time.perf_counter()
            step()
            times[k].append(1e3 * (time.perf_counter() - start))
    return {k: statistics.median(values) for k, values in times.items()}


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measure, and write the table."""
    memory = {k: in_new_process(peak_megabytes, k) for k in (0, *NUM_STEPS)}
    times = in_new_process(milliseconds)
    fit = statistics.linear_regression(NUM_STEPS, [times[k] for k in NUM_STEPS])
    r_squared = statistics.correlation(NUM_STEPS, [times[k] for k in NUM_STEPS]) ** 2
    rows = [
        f"| {k or 'none: Trace_ELBO'} | {memory[k]:.1f} | {memory[k] / memory[1]:.2f} |"
        f" {times[k]:.0f} | {times[k] / times[0]:.1f} |"
        for k in memory
    ]
    text = "\n".join(
        [
            "# TraceHamiltonian_ELBO: memory and time of a training step",
            "",
            f"A VAE {PIXELS}-{HIDDEN}-{LATENT} on {ROWS} rows, float32, one thread. Memory is the"
            " peak of what torch's CPU allocator",
            "holds during one `svi.step` above what it held before (parameters, data and Adam's"
            " moments are not counted),",
            f"each in a process of its own. Time is the median of {ROUNDS} interleaved steps.",
            "",
            "| leapfrog steps K | peak, MB | against K = 1 | time, ms | against Trace_ELBO |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Straight line through the times: {fit.intercept:.0f} ms + {fit.slope:.0f} ms · K,"
            f" R² = {r_squared:.4f}.",
            "",
            f"pyro-infovae {__version__}, torch {torch.__version__}, pyro {pyro.__version__},"
            f" Python {platform.python_version()}; {platform.platform()}, {os.cpu_count()} CPUs;"
            f" {datetime.date.today().isoformat()}.",
            "Written by `python benchmarks/hamiltonian_cost.py`.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

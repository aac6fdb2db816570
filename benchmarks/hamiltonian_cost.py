"""Memory and time of a TraceHamiltonian_ELBO step against its number of leapfrog steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pyro
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.elbo import ELBO

from benchmarks.measuring import Call, Step, interleaved, peak_megabytes, ratios
from benchmarks.networks import VAE, Size, binary_images
from benchmarks.report import Report, Row
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.compile import CompiledSVI

SIZE, ROWS = Size(784, 400, 20), 1024
NUM_STEPS = (1, 3, 10, 25, 50)
ROUNDS = 5
WAYS: dict[str, tuple[type[SVI] | type[CompiledSVI], bool]] = {
    "SVI": (SVI, False),
    "SVI, checkpoint=True": (SVI, True),
    "CompiledSVI": (CompiledSVI, False),
}


class Cost(NamedTuple):
    """Memory and times of a training step."""

    megabytes: float
    milliseconds: list[float]


def measure(
    call: Call,
    *,
    size: Size = SIZE,
    num_steps: Sequence[int] = NUM_STEPS,
    rounds: int = ROUNDS,
) -> Report:
    """A table by number of steps, and the straight lines through it."""
    counts = (0, *num_steps)
    found = {way: call(costs, way, counts, size, rounds) for way in WAYS}
    return Report(
        title="TraceHamiltonian_ELBO: memory and time of a training step",
        method=(
            f"A VAE {size} on {ROWS} rows, float32. Memory is the peak of what torch's allocator"
            " holds during a step above what it held before: parameters, data and Adam's moments"
            " are not counted. All settings but K are the defaults; with `checkpoint=True` backward"
            " computes each leapfrog step again, so that memory hardly grows with K. Times are of"
            f" {rounds} interleaved steps."
        ),
        packages=["pyro-infovae", "torch", "pyro-ppl"],
        tables=[
            [
                {
                    "step": way,
                    "leapfrog steps K": k or "none: Trace_ELBO",
                    "peak, MB": cost.megabytes,
                    "ms": statistics.median(cost.milliseconds),
                    "ms against Trace_ELBO": ratios(cost.milliseconds, by_count[0].milliseconds),
                }
                for way, by_count in found.items()
                for k, cost in by_count.items()
            ],
            [line(way, by_count, num_steps) for way, by_count in found.items()],
        ],
    )


def objective(num_steps: int, *, checkpoint: bool) -> ELBO:
    """The objective with that many leapfrog steps; none is the stock ELBO."""
    if num_steps == 0:
        return Trace_ELBO()
    return TraceHamiltonian_ELBO(num_steps, checkpoint=checkpoint, name=f"hamiltonian_{num_steps}")


def training_step(way: str, num_steps: int, size: Size) -> Step:
    """A step that has been warmed up."""
    vae, x = VAE(size), binary_images(ROWS, size)
    svi, checkpoint = WAYS[way]
    loss = objective(num_steps, checkpoint=checkpoint)
    steps = svi(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    for _ in range(3):
        steps.step(x)
    return partial(steps.step, x)


def costs(way: str, counts: Sequence[int], size: Size, rounds: int) -> dict[int, Cost]:
    """The cost by number of leapfrog steps."""
    pyro.set_rng_seed(0)
    steps = {str(k): training_step(way, k, size) for k in counts}
    memory = {k: peak_megabytes(step) for k, step in steps.items()}
    times = interleaved(steps, rounds=rounds, steps=1)
    return {int(k): Cost(memory[k], times[k]) for k in steps}


def line(name: str, costs: dict[int, Cost], num_steps: Sequence[int]) -> Row:
    """The straight line through the median times."""
    medians = [statistics.median(costs[k].milliseconds) for k in num_steps]
    fit = statistics.linear_regression(num_steps, medians)
    return {
        "straight line": name,
        "at K = 0, ms": fit.intercept,
        "each leapfrog step, ms": fit.slope,
        "R²": f"{statistics.correlation(num_steps, medians) ** 2:.4f}",
    }

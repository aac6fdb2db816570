"""What the benchmarks share: one thread, new processes, interleaved times, peaks of memory."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
Step = Callable[[], object]

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


class Call(Protocol):
    """A way to call a function: in a new process, or, for tests, in this one."""

    def __call__(self, function: Callable[..., T], /, *arguments: object) -> T:
        """Call it."""


@dataclass(frozen=True)
class Quartiles:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean, and what it may be off by: its standard error, or the standard deviation."""

    mean: float
    error: float


def in_new_process(function: Callable[..., T], /, *arguments: object) -> T:
    """Call a function in a process of its own, which has one thread and one core."""
    os.environ.update(ONE_THREAD)  # read when torch and jax are imported
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_to_one_core) as pool:
        return pool.submit(function, *arguments).result()


def interleaved(
    contenders: Mapping[str, Step], *, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Milliseconds of a step by contender, one number a round: the median of its steps.

    Every contender has its turn in every round, so that what slows the machine slows all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            step()  # what the one before has left in the caches
            times[name].append(statistics.median(_milliseconds(step) for _ in range(steps)))
    return times


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of at least two values."""
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(times: Sequence[float], reference: Sequence[float]) -> Quartiles:
    """The ratio of two contenders' times, round by round."""
    return quartiles([a / b for a, b in zip(times, reference, strict=True)])


def mean(values: Sequence[float]) -> Estimate:
    """A mean with its standard error."""
    return Estimate(statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5)


def peak_megabytes(step: Step) -> float:
    """The most that torch's CPU allocator holds during a step above what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        step()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def _milliseconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _to_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

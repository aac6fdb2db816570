"""Memory and time of MMD² and its gradient: this library against a matrix product and autograd.

Run by hand: ``python benchmarks/mmd_memory.py``. Writes ``benchmarks/mmd_memory.md``.
"""

import datetime
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pyro_infovae import __version__
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

FEATURES = 10
T = TypeVar("T")


def library(x: Tensor, y: Tensor) -> Tensor:
    """The library's unbiased estimator."""
    return mmd_squared(x, y, RBF())


def plain(x: Tensor, y: Tensor) -> Tensor:
    """The same, as commonly written."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distances = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        return torch.exp(-distances / (2 * a.shape[1]))

    def between_rows(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return between_rows(x) + between_rows(y) - 2 * kernel(x, y).mean()


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"library": library, "plain": plain}


def seconds(method: str, n: int) -> float:
    """Time one forward and backward."""
    x, y = torch.randn(n, FEATURES, requires_grad=True), torch.randn(n, FEATURES)
    start = time.perf_counter()
    METHODS[method](x, y).backward()
    return time.perf_counter() - start


def peak_megabytes() -> float:
    """Return the largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def memory(method: str, n: int) -> float:
    """Return by how many megabytes a run of n rows raises the peak; to be called once a process."""
    torch.set_num_threads(1)
    seconds(method, 256)
    before = peak_megabytes()
    seconds(method, n)
    return peak_megabytes() - before


def time_ratio(n: int, repeats: int) -> tuple[float, float, float]:
    """Return the median milliseconds of the library, of plain, and the median of their ratio."""
    torch.set_num_threads(1)
    pairs = [(seconds("library", n), seconds("plain", n)) for _ in range(repeats + 3)][3:]
    ours, theirs = (statistics.median(1e3 * p[i] for p in pairs) for i in (0, 1))
    return ours, theirs, statistics.median(a / b for a, b in pairs)


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measure, and write the table."""
    memory_rows = [
        f"| {method} | {n} | {in_new_process(memory, method, n):.0f} |"
        for method, n in (("library", 16384), ("library", 4096), ("plain", 4096))
    ]
    time_rows = []
    for n, repeats in ((128, 500), (4096, 5)):
        ours, theirs, ratio = in_new_process(time_ratio, n, repeats)
        time_rows.append(f"| {n} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |")
    text = "\n".join(
        [
            "# MMD²: memory and time of forward and backward",
            "",
            f"RBF kernel, unbiased, {FEATURES} features, float32, one thread, gradient with respect"
            " to x. `plain` is a matrix product, exp and autograd.",
            "",
            f"pyro-infovae {__version__}, torch {torch.__version__}, Python"
            f" {platform.python_version()}; {platform.platform()}, {os.cpu_count()} CPUs;"
            f" {datetime.date.today().isoformat()}. Written by `python benchmarks/mmd_memory.py`.",
            "",
            "| method | rows of x and of y | peak above baseline, MB |",
            "|---|---|---|",
            *memory_rows,
            "",
            "| rows of x and of y | library, ms | plain, ms | median ratio |",
            "|---|---|---|---|",
            *time_rows,
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

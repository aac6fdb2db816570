"""Memory and time of MMD² and its gradient: this library against a matrix product and autograd."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from benchmarks.measuring import Call, interleaved, peak_megabytes, ratios
from benchmarks.networks import VAE, Size, binary_images
from benchmarks.report import Report, Row
from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

FEATURES = 10
MEMORY_ROWS = {"library": (4096, 16384), "plain": (4096,)}
STEP_ROWS = (4096, 16384)
STEP_SIZE = Size(16, 16, FEATURES)
TIME_ROUNDS = {128: 200, 4096: 7}


def measure(
    call: Call,
    *,
    memory_rows: Mapping[str, Sequence[int]] = MEMORY_ROWS,
    step_rows: Sequence[int] = STEP_ROWS,
    time_rounds: Mapping[int, int] = TIME_ROUNDS,
) -> Report:
    """Tables of the function's memory, of a training step's, and of the function's time."""
    return Report(
        title="MMD²: memory and time",
        method=(
            f"RBF kernel, unbiased, {FEATURES} features, float32, forward and backward with respect"
            " to x. `plain` is a matrix product, exp and autograd. Memory is the peak of what"
            " torch's allocator holds above what it held before. The training step is that of a"
            f" VAE {STEP_SIZE} under `TraceMMD_ELBO`, by Pyro's SVI and by `CompiledSVI`, the"
            " networks' activations included."
        ),
        packages=["pyro-infovae", "torch", "pyro-ppl"],
        tables=[
            [
                {"MMD²": method, "rows of x and of y": n, "peak, MB": call(memory, method, n)}
                for method, sizes in memory_rows.items()
                for n in sizes
            ],
            [
                {
                    "training step": svi.__name__,
                    "rows": n,
                    "peak, MB": call(memory_of_step, svi, n),
                }
                for n in step_rows
                for svi in (SVI, CompiledSVI)
            ],
            [call(times, n, rounds) for n, rounds in time_rounds.items()],
        ],
    )


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


def forward_and_backward(method: str, x: Tensor, y: Tensor) -> None:
    """Compute it and its gradient."""
    x.grad = None
    METHODS[method](x, y).backward()


def rows_of(n: int) -> tuple[Tensor, Tensor]:
    """Rows of x, which want a gradient, and of y."""
    return torch.randn(n, FEATURES, requires_grad=True), torch.randn(n, FEATURES)


def memory(method: str, n: int) -> float:
    """Megabytes of the function."""
    forward_and_backward(method, *rows_of(256))
    return peak_megabytes(partial(forward_and_backward, method, *rows_of(n)))


def memory_of_step(svi: type[SVI] | type[CompiledSVI], n: int) -> float:
    """Megabytes of a training step."""
    vae, x = VAE(STEP_SIZE), binary_images(n, STEP_SIZE)
    steps = svi(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMMD_ELBO())
    for _ in range(3):
        steps.step(x)
    return peak_megabytes(partial(steps.step, x))


def times(n: int, rounds: int) -> Row:
    """Milliseconds of both, and their ratio."""
    x, y = rows_of(n)
    measured = interleaved(
        {method: partial(forward_and_backward, method, x, y) for method in METHODS},
        rounds=rounds,
        steps=1,
    )
    return {
        "rows of x and of y": n,
        **{f"{method}, ms": statistics.median(values) for method, values in measured.items()},
        "ratio": ratios(measured["library"], measured["plain"]),
    }

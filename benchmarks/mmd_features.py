"""MMD² by random frequencies: its noise for its time against the unbiased sums, and its growth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measuring import Call, Quartiles, interleaved, peak_megabytes, ratios
from benchmarks.report import Report, Row
from pyro_infovae.kernels import IMQ, RBF, RadialKernel
from pyro_infovae.mmd import mmd_squared

KERNELS: dict[str, RadialKernel] = {"RBF()": RBF(), "IMQ()": IMQ()}
FEATURES = (2, 8, 32)
DRAWS = {128: 400, 1024: 80}
ROUNDS = 20
GROWTH = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
GROWTH_FEATURES = 10
SHIFT = 0.2


def measure(
    call: Call,
    *,
    features: Sequence[int] = FEATURES,
    draws: Mapping[int, int] = DRAWS,
    rounds: int = ROUNDS,
    growth: Sequence[int] = GROWTH,
) -> Report:
    """A table of the noise for the time, and one of time and memory by the number of rows."""
    return Report(
        title="MMD² by random frequencies",
        method=(
            "Codes A u + b of standard normal u, with A = 1 and b ="
            f" {SHIFT}, against N(0, 1): `features`, which does not sample the prior, against"
            " `unbiased`, which draws as many rows from it. Variances of the estimate, and of its"
            " gradient with respect to A and b (the trace of the covariance), and the time of both,"
            " each as a share of that of `unbiased`: below 1, a product with time is a more precise"
            " answer for the same time. Below, time and memory of value and gradient of"
            f" `features` in {GROWTH_FEATURES} features, with the ratio to half as many rows,"
            " round by round."
        ),
        packages=["pyro-infovae", "torch"],
        tables=[
            [
                call(noise, kernel, n, d, number, rounds)
                for kernel in KERNELS
                for d in features
                for n, number in draws.items()
            ],
            call(growing, growth, rounds),
        ],
    )


def noise(kernel: str, n: int, d: int, draws: int, rounds: int) -> Row:
    """One case of the first table."""
    torch.manual_seed(0)
    a, b = torch.eye(d).requires_grad_(), torch.full((d,), SHIFT).requires_grad_()
    zero, one = torch.zeros(1, d), torch.ones(1, d)
    k = KERNELS[kernel]

    def unbiased(x: Tensor) -> Tensor:
        return mmd_squared(x, torch.randn(n, d), k)

    def features(x: Tensor) -> Tensor:
        return mmd_squared(x, zero, k, estimator="features", y_scale=one)

    def step(estimate: Callable[[Tensor], Tensor]) -> Tensor:
        value = estimate(torch.randn(n, d) @ a + b)
        gradients = torch.autograd.grad(value, (a, b))
        return torch.cat([value.detach()[None], *(g.flatten() for g in gradients)])

    found = {f.__name__: torch.stack([step(f) for _ in range(draws)]) for f in (unbiased, features)}
    values = {name: each[:, 0].var() for name, each in found.items()}
    gradients = {name: each[:, 1:].var(0).sum() for name, each in found.items()}
    times = interleaved(
        {f.__name__: partial(step, f) for f in (unbiased, features)}, rounds=rounds, steps=5
    )
    seconds = ratios(times["features"], times["unbiased"])
    of_value, of_gradient = (
        float(each["features"] / each["unbiased"]) for each in (values, gradients)
    )
    return {
        "kernel": kernel,
        "features": d,
        "rows": n,
        "variance": of_value,
        "variance of the gradient": of_gradient,
        "time": seconds,
        "variance × time": _times(of_value, seconds),
        "gradient's × time": _times(of_gradient, seconds),
    }


def growing(growth: Sequence[int], rounds: int) -> list[Row]:
    """Milliseconds and megabytes by the number of rows."""
    loc, scale = torch.zeros(1, GROWTH_FEATURES), torch.ones(1, GROWTH_FEATURES)
    rows = {n: torch.randn(n, GROWTH_FEATURES, requires_grad=True) for n in growth}

    def step(n: int) -> None:
        rows[n].grad = None
        mmd_squared(rows[n], loc, RBF(), estimator="features", y_scale=scale).backward()

    times = interleaved(
        {str(n): partial(step, n) for n in growth}, rounds=max(2, rounds // 4), steps=1
    )
    return [
        {
            "rows": n,
            "ms": statistics.median(times[str(n)]),
            "time, of half the rows": (
                ratios(times[str(n)], times[str(n // 2)]) if str(n // 2) in times else "-"
            ),
            "peak, MB": peak_megabytes(partial(step, n)),
        }
        for n in growth
    ]


def _times(variance: float, seconds: Quartiles) -> Quartiles:
    return Quartiles(*(variance * s for s in (seconds.low, seconds.median, seconds.high)))

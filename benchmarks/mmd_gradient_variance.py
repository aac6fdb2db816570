"""Variance of the MMD penalty's gradient, and what it costs in time, by estimator.

Data x ~ N(0, I), and a guide z | x ~ N(a W x + b, s²) with orthonormal rows of W and
a² + s² = 1: its aggregated posterior is the prior, shifted by b. The model has no likelihood, so
that the loss is N MMD² alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from benchmarks.measuring import Call, Estimate, interleaved, mean
from benchmarks.report import Report, Row
from pyro_infovae import TraceMMD_ELBO


class Case(NamedTuple):
    """Rows in a minibatch, features of the code, and how far the codes are off the prior."""

    rows: int
    features: int
    shift: float


CASES = (Case(128, 8, 0.1), Case(128, 8, 0.5), Case(256, 16, 0.5))
NUM_DATA, INPUTS, SCALE = 4096, 64, 0.6
# Of so many data the closed form estimates what the draws do: MMD² of infinitely many.
POPULATION = 10**9
DRAWS, ROUNDS = 400, 20
ESTIMATORS: dict[str, dict[str, Any]] = {
    "unbiased": {},
    "biased": {"estimator": "biased"},
    "unbiased, 4 prior draws": {"prior_draws": 4},
    "unbiased, 16 prior draws": {"prior_draws": 16},
    "closed_form": {"estimator": "closed_form"},
}


class Codes(nn.Module):
    """A model and a guide of latents alone."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.features = case.features
        self.loc = nn.Linear(INPUTS, case.features)
        self.log_scale = nn.Parameter(torch.full((case.features,), SCALE).log())
        nn.init.orthogonal_(self.loc.weight, gain=(1 - SCALE**2) ** 0.5)
        nn.init.constant_(self.loc.bias, case.shift)

    def model(self, x: Tensor) -> None:
        """The prior."""
        with _plate(x):
            pyro.sample("z", dist.Normal(x.new_zeros(self.features), 1.0).to_event(1))

    def guide(self, x: Tensor) -> None:
        """The codes."""
        pyro.module("codes", self)
        with _plate(x):
            pyro.sample("z", dist.Normal(self.loc(x), self.log_scale.exp()).to_event(1))


def measure(
    call: Call, *, cases: Sequence[Case] = CASES, draws: int = DRAWS, rounds: int = ROUNDS
) -> Report:
    """A table of all cases and estimators."""
    return Report(
        title="MMD² in training: variance of the gradient and its price",
        method=(
            f"The gradient of MMD² with respect to a linear guide of {NUM_DATA} data, over"
            f" {draws} minibatches drawn without replacement, and the noise. *Variance* is the"
            " trace of its covariance, against that of `unbiased`; *bias* is along the exact"
            " gradient (of the whole data set, in closed form) and in per cent of it. Time is that"
            f" of the loss and its gradient by Pyro, {rounds} rounds; *variance × time* is against"
            " that of `unbiased` too: the lower, the more precise a gradient for the same time."
            " *Shift* is how far every feature's mean is off the prior's; its variance is the"
            " prior's."
        ),
        packages=["pyro-infovae", "torch", "pyro-ppl"],
        tables=[[row for case in cases for row in call(rows, case, draws, rounds)]],
    )


def rows(case: Case, draws: int, rounds: int) -> list[Row]:
    """What was found in one case, a row by estimator."""
    pyro.set_rng_seed(0)
    codes, data = Codes(case), torch.randn(NUM_DATA, INPUTS)
    truth = gradient(codes, data, estimator="closed_form")
    gradients = {
        name: torch.stack(
            [gradient(codes, _minibatch(data, case), **options) for _ in range(draws)]
        )
        for name, options in ESTIMATORS.items()
    }
    spread = {name: variance(found) for name, found in gradients.items()}
    x = _minibatch(data, case)
    times = interleaved(
        {name: partial(gradient, codes, x, **options) for name, options in ESTIMATORS.items()},
        rounds=rounds,
        steps=5,
    )
    found = []
    for name in ESTIMATORS:
        noise = _relative(spread[name], spread["unbiased"])
        seconds = mean([a / b for a, b in zip(times[name], times["unbiased"], strict=True)])
        found.append(
            {
                "rows": case.rows,
                "features": case.features,
                "shift": case.shift,
                "estimator": name,
                "bias, %": bias(gradients[name], truth),
                "variance": noise,
                "ms": statistics.median(times[name]),
                "variance × time": product(noise, seconds),
            }
        )
    return found


def gradient(codes: Codes, x: Tensor, **options: Any) -> Tensor:
    """The gradient of one minibatch's MMD², as a vector."""
    elbo = TraceMMD_ELBO(1.0, 1.0, **options)  # no KL, and a factor of 1
    codes.zero_grad()
    elbo.loss_and_grads(codes.model, codes.guide, x)
    found = parameters_to_vector([p.grad for p in codes.parameters() if p.grad is not None])
    return found / POPULATION


def variance(gradients: Tensor) -> Estimate:
    """The trace of the covariance of the rows, with its standard error."""
    squares = (gradients - gradients.mean(0)).square().sum(1)
    return mean(squares.tolist())


def bias(gradients: Tensor, truth: Tensor) -> Estimate:
    """The mean's component along the truth, in per cent of the truth's length beyond it."""
    along = gradients @ truth / truth.square().sum()
    return mean((100 * (along - 1)).tolist())


def product(a: Estimate, b: Estimate) -> Estimate:
    """The product of two independent estimates, with its standard error to first order."""
    value = a.mean * b.mean
    return Estimate(value, value * math.hypot(a.error / a.mean, b.error / b.mean))


def _relative(a: Estimate, reference: Estimate) -> Estimate:
    if a is reference:
        return Estimate(1.0, 0.0)
    inverse = Estimate(1 / reference.mean, reference.error / reference.mean**2)
    return product(a, inverse)


def _plate(x: Tensor) -> pyro.plate:
    return pyro.plate("data", POPULATION, subsample=torch.arange(len(x)))


def _minibatch(data: Tensor, case: Case) -> Tensor:
    return data[torch.randperm(len(data))[: case.rows]]

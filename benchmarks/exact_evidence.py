"""Is the Hamiltonian bound a bound? Its weights, against models whose evidence is known.

Guides with errors of their own, and a flow that was trained under the objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI

from benchmarks.measuring import Call, Estimate, mean
from benchmarks.report import Report, Row
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.diagnostics import Evidence, log_evidence

NUM_STEPS = (1, 3, 10)
DRAWS = 100_000
TRAINING_STEPS = 600


class Problem(NamedTuple):
    """A model, a guide, and log p(x)."""

    model: Callable[[], None]
    guide: Callable[[], None]
    evidence: float


def linear_gaussian() -> Problem:
    """Linear in z ~ N(0, I_3): the guide is diagonal, off centre and too wide."""
    weight, shift, noise = torch.randn(4, 3), torch.randn(4), 0.8
    x = weight @ torch.randn(3) + shift + noise * torch.randn(4)
    precision = torch.eye(3) + weight.T @ weight / noise**2
    loc = torch.linalg.solve(precision, weight.T @ (x - shift) / noise**2) + 0.3
    scale = precision.inverse().diagonal().sqrt() * 1.3
    covariance = weight @ weight.T + noise**2 * torch.eye(4)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight.T + shift, noise).to_event(1), obs=x)

    def guide() -> None:
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Problem(model, guide, dist.MultivariateNormal(shift, covariance).log_prob(x).item())


def gamma_poisson() -> Problem:
    """A rate in a Gamma prior, five counts: the guide is log-normal."""
    counts, shape, rate = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0]), torch.tensor(2.0), 0.5
    total, n = counts.sum(), len(counts)
    evidence = (
        shape * math.log(rate)
        - shape.lgamma()
        + (shape + total).lgamma()
        - (shape + total) * math.log(rate + n)
        - (counts + 1).lgamma().sum()
    )

    def model() -> None:
        z = pyro.sample("z", dist.Gamma(shape, rate))
        with pyro.plate("data", n):
            pyro.sample("x", dist.Poisson(z), obs=counts)

    def guide() -> None:
        pyro.sample("z", dist.LogNormal(0.8, 0.4))

    return Problem(model, guide, evidence.item())


def dirichlet_multinomial() -> Problem:
    """Shares of three kinds in a Dirichlet prior, twelve draws: the guide is another Dirichlet."""
    counts, alpha = torch.tensor([7.0, 3.0, 2.0]), torch.tensor([1.0, 2.0, 1.5])
    evidence = (
        alpha.sum().lgamma()
        - (alpha + counts).sum().lgamma()
        + ((alpha + counts).lgamma() - alpha.lgamma()).sum()
        + (counts.sum() + 1).lgamma()
        - (counts + 1).lgamma().sum()
    )

    def model() -> None:
        z = pyro.sample("z", dist.Dirichlet(alpha))
        pyro.sample("x", dist.Multinomial(probs=z, validate_args=False), obs=counts)

    def guide() -> None:
        pyro.sample("z", dist.Dirichlet(torch.tensor([3.0, 3.0, 2.0])))

    return Problem(model, guide, evidence.item())


PROBLEMS = {
    "normal, d = 3": linear_gaussian,
    "Gamma-Poisson": gamma_poisson,
    "Dirichlet-multinomial": dirichlet_multinomial,
}


def measure(
    call: Call,
    *,
    num_steps: Sequence[int] = NUM_STEPS,
    draws: int = DRAWS,
    training_steps: int = TRAINING_STEPS,
) -> Report:
    """A table of models, without a flow and with K leapfrog steps."""
    return Report(
        title="Exact evidence: the Hamiltonian bound",
        method=(
            f"`ELBO` and log E[w] from {draws:,} draws: the bound lies below log p(x), and the"
            " mean weight is p(x), with any number K of leapfrog steps. K = 0 is the guide alone,"
            " which is fixed; the flow, all else at its defaults, has"
            f" {training_steps} Adam steps at its step sizes, temperatures and persistence."
            " `z-score`: how many standard errors the mean weight is off; `effective share`:"
            " effective sample size over draws. float64."
        ),
        packages=["pyro-infovae", "torch", "pyro-ppl"],
        tables=[call(rows, tuple(num_steps), draws, training_steps)],
    )


def rows(num_steps: Sequence[int], draws: int, training_steps: int) -> list[Row]:
    """A row per model and K."""
    torch.set_default_dtype(torch.float64)
    table: list[Row] = []
    for name, make in PROBLEMS.items():
        pyro.set_rng_seed(0)
        problem = make()
        for k in (0, *num_steps):
            found = weighed(problem, k, draws=draws, training_steps=training_steps)
            estimate, error = found.total.item(), found.standard_error.item()
            table.append(
                {
                    "model": name,
                    "K": k,
                    "log p(x)": f"{problem.evidence:.4f}",
                    "ELBO": mean(found.log_weights.tolist()),
                    "log E[w]": Estimate(estimate, error),
                    "z-score": math.expm1(estimate - problem.evidence)
                    / (error * math.exp(estimate - problem.evidence)),
                    "effective share": found.effective_sample_size.item() / draws,
                }
            )
    return table


def weighed(problem: Problem, num_steps: int, *, draws: int, training_steps: int) -> Evidence:
    """Weights of the guide's draws, or of those after a trained flow."""
    pyro.clear_param_store()
    elbo = None
    if num_steps:
        elbo = TraceHamiltonian_ELBO(
            num_steps,
            num_particles=16,
            vectorize_particles=True,
            max_plate_nesting=1,
        )
        svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
        for _ in range(training_steps):
            svi.step()
    return log_evidence(problem.model, problem.guide, num_samples=draws, elbo=elbo)

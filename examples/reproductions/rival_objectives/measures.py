"""What is measured, with the backend that was asked for; rivals run in their own."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from reproduction.runs import Row
from rival_objectives import autoencoders, guides, posteriors

# What a rival needs beside the backend.
NEEDS = {"AutoDAIS": "numpyro", "Trace_MMD": "pyro", "pythae": "pythae"}
MANY = f"TraceMMD_ELBO, {autoencoders.PARTICLES} particles"
COMPILED = "TraceMMD_ELBO, compiled"

# With the KL (α = 0), and without.
TRAININGS = (
    (0.0, "ELBO"),
    (0.0, "TraceMMD_ELBO"),
    (0.0, COMPILED),
    (0.0, "pythae"),
    (1.0, "TraceMMD_ELBO"),
    (1.0, COMPILED),
    (1.0, MANY),
    (1.0, "Trace_MMD"),
    (1.0, "pythae"),
)


@dataclass(frozen=True)
class Plan:
    """What an effort affords.

    Attributes:
        posteriors: How long guides are trained.
        autoencoders: How long autoencoders are trained.
        num_steps: The numbers of leapfrog steps K.
        seeds: Trainings of each kind.
        problems: The posteriors.
        trainings: α and objective of every autoencoder.
    """

    posteriors: posteriors.Plan
    autoencoders: autoencoders.Plan
    num_steps: tuple[int, ...]
    seeds: int
    problems: tuple[str, ...] = posteriors.PROBLEMS
    trainings: tuple[tuple[float, str], ...] = TRAININGS


def missing() -> list[str]:
    """The rivals that are not installed."""
    return [rival for rival, package in NEEDS.items() if find_spec(package) is None]


def posterior_settings(plan: Plan) -> list[Row]:
    """Every guide on every posterior, the dearest first."""
    methods = ("AutoNormal", "TraceHamiltonian_ELBO", "AutoDAIS")
    return [
        {"problem": problem, "method": method, "num_steps": num_steps}
        for num_steps in sorted(plan.num_steps, reverse=True)
        for problem in plan.problems
        for method in methods
        if method not in missing()
    ]


def autoencoder_settings(plan: Plan, backend: str) -> list[Row]:
    """Every objective, as often as there are seeds; in NumPyro, ours are compiled as they are."""
    absent = [*missing(), *([] if backend == "pyro" else [COMPILED])]
    return [
        {"alpha": alpha, "method": method, "seed": seed}
        for alpha, method in plan.trainings
        for seed in range(plan.seeds)
        if method not in absent
    ]


def measure_posterior(
    *, problem: str, method: str, num_steps: int, backend: str, plan: Plan
) -> Iterator[Row]:
    """A row per seed and latent."""
    for seed in range(plan.seeds):
        fit = guides.fit(problem, method, num_steps, seed, plan.posteriors, backend=backend)
        for row in posteriors.moments(problem, fit.draws):
            yield {"seed": seed, **row, **posteriors.bounds(fit)}


def measure_chain(*, chain_of: str, backend: str, plan: Plan) -> Iterator[Row]:
    """A row per latent."""
    draws = guides.chain(chain_of, 0, plan.posteriors, backend=backend)
    return posteriors.moments(chain_of, draws)


def measure_autoencoder(
    *, method: str, alpha: float, seed: int, backend: str, plan: Plan
) -> Iterator[Row]:
    """One row."""
    if method in NEEDS:
        rivals = importlib.import_module("rival_objectives.autoencoders_rivals")
        trained = rivals.train(method, alpha, seed, plan.autoencoders)
    else:
        trained = autoencoders.train(method, alpha, seed, plan.autoencoders, backend=backend)
    measured = autoencoders.measure(trained.weights, plan.autoencoders, backend=backend)
    yield {**measured, "step_ms": 1e3 * trained.step_seconds}

"""What is measured of one method in one dimension, and the table of all."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from hvae_gaussian_parts import problem
from hvae_gaussian_parts.methods import METHODS
from hvae_gaussian_parts.problem import DataSets, Parameters, truth
from hvae_gaussian_parts.programs import fit
from reproduction.results import cell, mean_and_spread

MEASURES = (
    "error",
    "error_of_mle",
    "distance_to_mle",
    "shortfall",
    "gap",
    "least_gap",
    "temperature",
)


def measure(
    dim: int,
    method: str,
    *,
    size: int,
    seeds: Sequence[int],
    budgets: Sequence[int],
    **training: str | int | float,
) -> Iterator[Mapping[str, str | int | float]]:
    """A row for every budget and data set.

    Args:
        dim: Number of coordinates.
        method: One of `METHODS`.
        size: Number of data in each data set.
        seeds: One for each data set.
        budgets: Gradients of the log joint after which to look, ascending.
        training: The backend, its device, RMSProp's learning rate, and the draws of a bound.
    """
    true, chosen = truth(dim), METHODS[method]
    data = problem.draw(true, size=size, seeds=seeds)
    steps = [budget // chosen.gradients for budget in budgets]
    looks = fit(chosen, data, steps, seed=dim, **training)
    for budget, found in zip(budgets, looks, strict=True):
        columns = compare(found.parameters, found.bound, data, true)
        for i, seed in enumerate(seeds):
            yield {
                "gradients": budget,
                "steps": found.steps,
                "seed": seed,
                "temperature": found.temperature,
                **{name: float(column[i]) for name, column in columns.items()},
            }


def compare(
    found: Parameters, bound: np.ndarray, data: DataSets, true: Parameters
) -> dict[str, np.ndarray]:
    """What was found against the truth and the best, each of shape (data sets,).

    The errors are the squared distance of (Δ, σ) to the truth; `shortfall` is what the evidence
    lacks of the highest, `gap` what the bound lacks of the evidence, both in nats.
    """
    best = problem.maximum_likelihood(data)
    evidence = problem.log_evidence(found, data)
    return {
        "error": squared_distance(found, true),
        "error_of_mle": squared_distance(best, true),
        "distance_to_mle": squared_distance(found, best),
        "shortfall": problem.log_evidence(best, data) - evidence,
        "gap": evidence - bound,
        "least_gap": problem.least_gap_from_prior(found, data),
    }


def squared_distance(one: Parameters, other: Parameters) -> np.ndarray:
    """Between the parameters (Δ, σ), of shape (data sets,)."""
    return ((one.shift - other.shift) ** 2).sum(-1) + ((one.sigma - other.sigma) ** 2).sum(-1)


def tabulate(runs: pd.DataFrame, size: int) -> pd.DataFrame:
    """Means and standard deviations over the data sets, beside the error to be expected of x̄."""
    table = mean_and_spread(runs, ["dim", "method", "gradients", "steps"], MEASURES)
    expected = [
        cell(problem.expected_shift_error(truth(dim), size=size)) for dim, *_ in table.index
    ]
    table.insert(2, "expected_error", expected)
    return table.rename(columns={"seeds": "data_sets"})

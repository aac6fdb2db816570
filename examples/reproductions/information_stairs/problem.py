"""Correlated normals whose mutual information is known, and the stairs that it climbs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DIMS = 20
BATCH = 64
STAIRS = (2.0, 4.0, 6.0, 8.0, 10.0)
PAIRS = ("normal", "cubic")
NEGATIVES = ("all", "shift")

# The bound whose surrogate the critic of each bound maximises: smile is read off js's.
TRAINED_AS = {"nwj": "nwj", "dv": "dv", "infonce": "infonce", "js": "js", "smile": "js"}


@dataclass(frozen=True)
class Plan:
    """How long critics climb, and how large they are.

    Attributes:
        iterations: Optimiser steps per stair, each on a fresh minibatch.
        hidden: Widths of the critic's hidden layers.
        learning_rate: Adam's.
    """

    iterations: int
    hidden: tuple[int, ...]
    learning_rate: float


@dataclass(frozen=True)
class Climb:
    """The way up the stairs of one critic per surrogate, on the same minibatches.

    Attributes:
        pairs: `normal`, or `cubic`: with z cubed, which leaves the information as it is.
        critic: `separable`, `joint` (a network on x and z side by side), or `exact`: the best
            critic of each bound, where nothing is trained.
        negatives: `all` other rows, or each row's `shift`ed neighbour.
        seed: Of all randomness.
    """

    pairs: str
    critic: str
    negatives: str
    seed: int = 0


def correlation(information: float, dims: int = DIMS) -> float:
    """The ρ of every pair of coordinates at which I(x; z) = -(d/2) log(1 - ρ²)."""
    return math.sqrt(-math.expm1(-2 * information / dims))


def log_ratio(x: Any, z: Any, information: Any, rho: Any) -> Any:
    """The log of p(x, z) / p(x) p(z), row by row, for the arrays of any library.

    Args:
        x: Standard normal, of shape (rows, dims).
        z: ρ x + √(1 - ρ²) noise.
        information: I(x; z) in nats: half of the log determinant, and the expectation.
        rho: The correlation.
    """
    square = rho**2
    exponent = (2 * rho * x * z - square * (x**2 + z**2)) / (2 * (1 - square))
    return information + exponent.sum(-1)


def best_critics(information: Any, rho: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """The best critic of every surrogate: the log ratio, to which that of NWJ adds 1."""

    def best(offset: float) -> Callable[[Any, Any], Any]:
        return lambda x, z: log_ratio(x, z, information, rho) + offset

    return {name: best(1.0 if name == "nwj" else 0.0) for name in TRAINED_AS.values()}

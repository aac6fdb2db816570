"""Two posteriors: a logistic regression with as many features as sonar data, and Neal's funnel."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import sem

from pyro_infovae.diagnostics import Evidence

PROBLEMS = ("logistic", "funnel")
ROWS, FEATURES = 208, 60
NEIGHBOURS_CORRELATION = 0.9
FUNNEL_SD, FUNNEL_DIMS = 3.0, 9
SITES = {"logistic": {"weights": (FEATURES + 1,)}, "funnel": {"v": (), "x": (FUNNEL_DIMS,)}}

# The same for ours and the rival, where both have the like.
STEP_SIZE, MAX_STEP_SIZE = 0.05, 0.5
INIT_SCALE = 0.1


@dataclass(frozen=True)
class Plan:
    """How long to train and to sample.

    Attributes:
        steps: Optimiser steps.
        particles: Draws per step of an objective with a flow.
        learning_rate: At the start; it falls to a 30th.
        draws: From a trained guide.
        chain: Draws of NUTS, after half as many that adapt it.
    """

    steps: int
    particles: int
    learning_rate: float
    draws: int
    chain: int

    @property
    def decay(self) -> float:
        """The factor on the learning rate per step."""
        return 30 ** (-1 / self.steps)


@dataclass(frozen=True)
class Fit:
    """A trained guide.

    Attributes:
        log_weights: log w of its draws, whose mean is the bound and E[w] the evidence.
        draws: Of all latents, side by side, of shape (draws, latents).
        step_seconds: Median time of a training step.
    """

    log_weights: np.ndarray
    draws: np.ndarray
    step_seconds: float


def regression() -> tuple[np.ndarray, np.ndarray]:
    """Features, whose neighbours are alike as bands of a spectrum are, with an intercept; labels.

    Returns:
        Features of shape (208, 61), and labels drawn from the prior predictive.
    """
    rng = np.random.default_rng(208)
    lags = np.abs(np.subtract.outer(np.arange(FEATURES), np.arange(FEATURES)))
    tril = np.linalg.cholesky(NEIGHBOURS_CORRELATION**lags)
    bands = rng.standard_normal((ROWS, FEATURES)) @ tril.T
    features = np.column_stack([bands, np.ones(ROWS)])
    labels = rng.random(ROWS) < expit(features @ rng.standard_normal(FEATURES + 1))
    return features.astype(np.float32), labels.astype(np.float32)


def latents(problem: str) -> list[str]:
    """Every latent number, by name, in the order of the columns of draws."""
    return [
        f"{site}[{i}]" if shape else site
        for site, shape in SITES[problem].items()
        for i in range(math.prod(shape))
    ]


def funnel_moments() -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every latent of the funnel: its evidence is 1."""
    sd_of_x = math.exp(FUNNEL_SD**2 / 4)
    return {name: (0.0, FUNNEL_SD if name == "v" else sd_of_x) for name in latents("funnel")}


def moments(problem: str, draws: np.ndarray) -> Iterator[dict[str, str | float]]:
    """A row per latent."""
    for name, mean, sd in zip(latents(problem), draws.mean(0), draws.std(0), strict=True):
        yield {"latent": name, "mean": float(mean), "sd": float(sd)}


def bounds(fit: Fit) -> dict[str, float]:
    """The bound, and the importance-weighted evidence with its effective sample size."""
    log_weights = np.asarray(fit.log_weights, np.float64)
    found = Evidence(log_weights)
    return {
        "bound": float(log_weights.mean()),
        "bound_se": float(sem(log_weights)),
        "evidence": float(found.log_evidence),
        "effective": float(found.effective_sample_size),
        "step_ms": 1e3 * fit.step_seconds,
    }

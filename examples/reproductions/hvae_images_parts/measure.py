"""What is measured of one training, and the table of all."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp

from hvae_images_parts.data import load
from hvae_images_parts.methods import METHODS, VAE, Setting, Snapshot
from hvae_images_parts.training import train
from reproduction.results import mean_and_spread

MEASURES = ("nll", "nll_own", "nll_encoder", "bound", "gap", "step_size", "beta_0")


def measure(
    images: str, seed: int, method: str, *, setting: Setting
) -> Iterator[Mapping[str, str | int | float]]:
    """A row for every checkpoint.

    Args:
        images: `digits`, or `scans` of the setting's folder.
        seed: Of weights, minibatches and draws.
        method: One of `METHODS`.
        setting: How to train and to measure.
    """
    loaded = load(
        setting.data_dir if images == "scans" else None,
        pooled=setting.pooled,
        num_test=setting.num_test,
    )
    steps = checkpoints(method, setting.methods, setting.gradients)
    for found in train(METHODS[method], loaded, setting, steps, seed):
        yield {
            "steps": found.steps,
            "gradients": found.steps * METHODS[method].gradients,
            **scores(found),
        }


def checkpoints(method: str, methods: Sequence[str], gradients: int) -> tuple[int, ...]:
    """The steps that the budget buys; the VAE is also looked at after those of the others."""
    looked_at = methods if method == VAE else (method,)
    return tuple(sorted({gradients // METHODS[name].gradients for name in looked_at}))


def scores(found: Snapshot) -> dict[str, float]:
    """Negative log likelihoods and bounds in nats per image.

    Both estimates of the NLL are too high in expectation: `nll` is the lower one.
    """
    own, encoder = nll(found.own), nll(found.encoder)
    bound = -float(found.own.mean())
    lower = min(own, encoder)
    return {
        "bound": bound,
        "nll_own": own,
        "nll_encoder": encoder,
        "nll": lower,
        "gap": bound - lower,
        "step_size": found.step_size,
        "beta_0": found.beta_0,
    }


def nll(log_weights: NDArray[np.float64]) -> float:
    """Negative log of the mean weight, averaged over the images."""
    return float((np.log(len(log_weights)) - logsumexp(log_weights, axis=0)).mean())


def tabulate(runs: pd.DataFrame) -> pd.DataFrame:
    """Means and standard deviations over the seeds."""
    return mean_and_spread(runs, ["method", "gradients", "steps"], MEASURES)

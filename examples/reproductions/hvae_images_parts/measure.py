"""What is measured of one training, and the table of all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_images_parts.data import Images
from hvae_images_parts.methods import METHODS, VAE, Snapshot
from hvae_images_parts.training import train
from pyro_infovae.diagnostics import Evidence

MEASURES = ("nll", "nll_own", "nll_encoder", "bound", "gap", "step_size", "beta_0")


def measure(
    images: str,
    seed: int,
    method: str,
    *,
    load: Callable[[], Images],
    methods: Sequence[str],
    gradients: int,
    **training: Any,
) -> Iterator[Mapping[str, str | int | float]]:
    """A row for every checkpoint.

    Args:
        images: What `load` gives, by name.
        seed: Of weights, minibatches and draws.
        method: One of `METHODS`.
        load: Gives the images.
        methods: Those that are compared.
        gradients: The budget of each, in gradients of the log joint.
        training: Options of `train`.
    """
    steps = checkpoints(method, methods, gradients)
    for found in train(METHODS[method], load(), steps, seed, **training):
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
    return -float(Evidence(log_weights).log_evidence.mean())

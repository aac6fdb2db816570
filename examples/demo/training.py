"""The training loop: stock SVI, whatever the objective."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.optim import Adam
from torch import Tensor

from demo.vae import VAE


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave.

    Attributes:
        loss: The objective's loss in nats per image, averaged over the minibatches.
        seconds: How long the pass took.
    """

    loss: float
    seconds: float


def train(
    vae: VAE,
    objective: ELBO,
    images: Tensor,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Iterator[Epoch]:
    """Train the model and the guide of `vae`, yielding after every epoch.

    Args:
        vae: Holds model and guide.
        objective: The loss that `SVI` descends.
        images: All training images, of shape (n, pixels).
        epochs: Number of passes over the images.
        batch_size: The most rows of a minibatch.
        learning_rate: Adam's.
        seed: Fixes the order of the minibatches and the guide's noise.
    """
    # What an earlier training left in the store would replace the weights of `vae`.
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    order = torch.Generator(images.device).manual_seed(seed)
    svi = SVI(vae.model, vae.guide, Adam({"lr": learning_rate}), loss=objective)

    for _ in range(epochs):
        start = time.perf_counter()
        loss = 0.0
        for rows in minibatches(len(images), batch_size, generator=order):
            loss += svi.step(images, rows) * len(rows) / len(images)
        yield Epoch(loss / len(images), time.perf_counter() - start)


def minibatches(size: int, batch_size: int, *, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Shuffle `0..size-1` into minibatches whose sizes differ by one at most."""
    rows = torch.randperm(size, generator=generator, device=generator.device)
    return rows.tensor_split(math.ceil(size / batch_size))

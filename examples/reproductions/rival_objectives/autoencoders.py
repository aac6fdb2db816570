"""One autoencoder of handwritten digits, whatever trains it: data, first weights, minibatches."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

LATENTS = 8
LAMBD = 100.0
BATCH = 128
PARTICLES = 10  # Trace_MMD's default

Layers = list[tuple[np.ndarray, np.ndarray]]  # each a kernel (inputs, outputs) and a bias


@dataclass(frozen=True)
class Plan:
    """How long to train and how closely to look.

    Attributes:
        steps: Optimiser steps.
        hidden: Width of the hidden layer of encoder and decoder.
        learning_rate: Adam's.
        samples: Importance samples per held-out image.
    """

    steps: int
    hidden: int
    learning_rate: float
    samples: int


@dataclass(frozen=True)
class Weights:
    """Of encoder and decoder.

    The encoder ends in means and log variances, the decoder in logits.
    """

    encoder: Layers
    decoder: Layers


@dataclass(frozen=True)
class Trained:
    """Weights, and the median time of the steps that made them."""

    weights: Weights
    step_seconds: float


def images() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images, a row of 64 binary pixels each."""
    pixels, labels = load_digits(return_X_y=True)
    binary = (pixels >= 8).astype(np.float32)
    train, test = train_test_split(binary, test_size=0.2, random_state=0, stratify=labels)
    return train, test


def first_weights(plan: Plan, seed: int) -> Weights:
    """Uniform within 1/√(inputs), as PyTorch draws them."""
    rng = np.random.default_rng(seed)
    pixels = images()[0].shape[1]

    def layers(*sizes: int) -> Layers:
        drawn = []
        for inputs, outputs in pairwise(sizes):
            bound = 1 / math.sqrt(inputs)
            values = rng.uniform(-bound, bound, (inputs + 1, outputs)).astype(np.float32)
            drawn.append((values[:-1], values[-1]))
        return drawn

    return Weights(layers(pixels, plan.hidden, 2 * LATENTS), layers(LATENTS, plan.hidden, pixels))


def minibatches(plan: Plan, seed: int) -> np.ndarray:
    """The rows of every step's minibatch, of shape (steps, rows)."""
    rng = np.random.default_rng(seed)
    count = len(images()[0])
    per_epoch = count // BATCH
    epochs = math.ceil(plan.steps / per_epoch)
    rows = [rng.permutation(count)[: per_epoch * BATCH] for _ in range(epochs)]
    return np.concatenate(rows).reshape(-1, BATCH)[: plan.steps]

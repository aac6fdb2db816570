"""One autoencoder of handwritten digits, whatever trains it: data, first weights, minibatches."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np

import info_vaes.images
from demo.backend import Setting, load
from demo.evaluation import binomial_log_prob, fit
from halves import draw_layers
from info_vaes.images import load_images
from rival_objectives.steps import take_steps

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


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images, a row of 64 binary pixels each."""
    data = load_images("", seed=0).binarised()
    return data.train_images, data.test_images


def first_weights(plan: Plan, seed: int) -> Weights:
    """As PyTorch draws them."""
    rng, pixels = np.random.default_rng(seed), images()[0].shape[1]
    encoder = draw_layers(rng, pixels, plan.hidden, 2 * LATENTS)
    return Weights(encoder, draw_layers(rng, LATENTS, plan.hidden, pixels))


def minibatches(plan: Plan, seed: int) -> list[np.ndarray]:
    """The rows of every step's minibatch."""
    order = np.random.default_rng(seed)
    return info_vaes.images.minibatches(len(images()[0]), plan.steps, order, batch_size=BATCH)


def train(method: str, alpha: float, seed: int, plan: Plan, *, backend: str) -> Trained:
    """Take the plan's steps under an objective of ours, or the stock one.

    Args:
        method: `ELBO`, or a `TraceMMD_ELBO`: as it is, `compiled`, or with as many particles as
            Trace_MMD's default.
        alpha: Of the objective.
        seed: Of weights, minibatches and noise.
        plan: How long.
        backend: `pyro` or `numpyro`.
    """
    half = importlib.import_module(f"halves.with_{backend}")
    many = half.particles(PARTICLES, plates=1) if "particles" in method else {}

    def objective() -> Any:
        if method == "ELBO":
            return half.TraceMeanField_ELBO()
        return half.TraceMMD_ELBO(alpha, LAMBD, **many)

    compiled = "compiled" in method
    return train_with(objective, seed, plan, backend=backend, compiled=compiled)


def train_with(
    objective: Callable[[], Any], seed: int, plan: Plan, *, backend: str, **setting: Any
) -> Trained:
    """Take the plan's steps under any objective of a backend."""
    weights = first_weights(plan, seed)
    training = start(objective, weights, plan, backend=backend, seed=seed, **setting)
    step = partial(training.step, training.images)
    seconds = take_steps(step, minibatches(plan, seed))
    return Trained(_programs(backend).weights_of(training), seconds)


def start(
    objective: Callable[[], Any], weights: Weights, plan: Plan, *, backend: str, **setting: Any
) -> Any:
    """A training that has taken no step yet."""
    train_images = images()[0]
    chosen = Setting(
        pixels=train_images.shape[1],
        levels=1,
        latent_dim=LATENTS,
        learning_rate=plan.learning_rate,
        **setting,
    )
    half, network = load(backend), _programs(backend).network

    class LogVarianceVAE(half.VAE):
        """The demo's, whose encoder ends in means and log variances."""

        def scale(self, log_variance: Any) -> Any:
            """The scale of q(z | x)."""
            return half.xp.exp(log_variance / 2)

    def build(_: Setting) -> LogVarianceVAE:
        networks = network(weights.encoder), network(weights.decoder)
        return LogVarianceVAE(*networks, levels=1, latent_dim=LATENTS)

    return half.start(objective, train_images, chosen, build)


def measure(weights: Weights, plan: Plan, *, backend: str) -> dict[str, float]:
    """What the weights are worth on held-out images, in nats per image."""
    test = images()[1]
    elbo = load(backend).TraceMeanField_ELBO
    training = start(elbo, weights, plan, seed=0, backend=backend)
    evidence = training.log_evidence(test, num_samples=plan.samples)
    loc, scale = training.posterior(test)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((plan.samples, *loc.shape), np.float32)
    log_likelihood = [
        binomial_log_prob(test, training.logits(z, test), levels=1) for z in loc + scale * noise
    ]
    return {
        "log_evidence": float(np.mean(np.asarray(evidence.log_evidence))),
        "effective": float(np.mean(np.asarray(evidence.effective_sample_size))),
        "mmd_squared": fit(training, test, levels=1).mmd_squared,
        "reconstruction": -float(np.mean(log_likelihood)),
    }


def _programs(backend: str) -> ModuleType:
    return importlib.import_module(f"rival_objectives.autoencoders_{backend}")

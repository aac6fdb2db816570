"""The training, with either backend."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from demo.backend import Setting, load
from halves import numbers
from hvae_images_parts.data import Images
from hvae_images_parts.methods import BATCH, STEP_SIZE, Method, Net, Snapshot


def train(
    method: Method,
    images: Images,
    checkpoints: Sequence[int],
    seed: int,
    *,
    net: Net,
    learning_rate: float,
    draws: int,
    backend: str,
    device: str,
) -> Iterator[Snapshot]:
    """Train with Adamax, and tell after some numbers of steps what has been learned.

    Args:
        method: The objective.
        images: To train on, and to hold out.
        checkpoints: The numbers of steps.
        seed: Of weights, minibatches and draws.
        net: The size of encoder and decoder.
        learning_rate: Adamax's.
        draws: Importance samples per test image.
        backend: `pyro` or `numpyro`.
        device: Where to compute, with Pyro.
    """
    half = load(backend)
    networks = importlib.import_module(f"hvae_images_parts.networks_{backend}")
    training = half.start(
        lambda: objective(method, net.latent_dim, backend),
        images.test[:1],
        Setting(
            pixels=images.side**2,
            levels=1,
            latent_dim=net.latent_dim,
            learning_rate=learning_rate,
            seed=seed,
            device=device,
            optimiser="adamax",
            compiled=True,
        ),
        lambda _: networks.build(images.side, net),
    )
    rng, rows, taken = np.random.default_rng(seed), np.arange(BATCH), 0
    for steps in checkpoints:
        for _ in range(steps - taken):
            intensities = images.train[rng.integers(len(images.train), size=BATCH)]
            inked = rng.random(intensities.shape, np.float32) < intensities
            training.step(inked.astype(np.float32), rows)
        taken = steps
        found = training.log_evidence(images.test, num_samples=draws, after_flow=False)
        own = encoder = numbers(found.log_weights)
        if training.flow is not None:
            found = training.log_evidence(images.test, num_samples=draws)
            own = numbers(found.log_weights)
        yield Snapshot(steps, own, encoder, *training.flow_settings())


def objective(method: Method, latent_dim: int, backend: str) -> Any:
    """The loss; a flow has a step size per dimension, and per step where tempering is free."""
    half = importlib.import_module(f"halves.with_{backend}")
    if method.num_steps == 0:
        return half.TraceMeanField_ELBO()
    per_step = method.tempering == "free"
    shape = (method.num_steps, latent_dim) if per_step else (latent_dim,)
    return half.TraceHamiltonian_ELBO(
        method.num_steps,
        half.array(np.full(shape, STEP_SIZE)),
        beta_0=method.beta_0,
        tempering=method.tempering,
        per_step=per_step,
        path="posterior",
    )

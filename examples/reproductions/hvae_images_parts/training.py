"""The training, with either backend."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from demo import backend
from demo.backend import Training
from hvae_images_parts.data import Images
from hvae_images_parts.methods import BATCH, STEP_SIZE, Method, Setting, Snapshot


def train(
    method: Method, images: Images, setting: Setting, checkpoints: Sequence[int], seed: int
) -> Iterator[Snapshot]:
    """Train, and tell after some numbers of steps what has been learned."""
    half = backend.load(setting.backend)
    networks = importlib.import_module(f"hvae_images_parts.networks_{setting.backend}")
    training = half.start(
        lambda: objective(method, setting),
        images.test[:1],
        backend.Setting(
            pixels=images.side**2,
            levels=1,
            latent_dim=setting.net.latent_dim,
            learning_rate=setting.learning_rate,
            seed=seed,
            device=setting.device,
            optimiser="adamax",
            compiled=True,
        ),
        lambda _: networks.build(images.side, setting.net),
    )
    rng, rows, taken = np.random.default_rng(seed), np.arange(BATCH), 0
    for steps in checkpoints:
        for _ in range(steps - taken):
            intensities = images.train[rng.integers(len(images.train), size=BATCH)]
            inked = rng.random(intensities.shape, np.float32) < intensities
            training.step(inked.astype(np.float32), rows)
        taken = steps
        encoder = _log_weights(training, images, setting, after_flow=False)
        if method.num_steps == 0:
            yield Snapshot(steps, encoder, encoder)
        else:
            own = _log_weights(training, images, setting, after_flow=True)
            yield Snapshot(steps, own, encoder, *networks.flow(training))


def objective(method: Method, setting: Setting) -> Any:
    """The loss; a flow has a step size per dimension, and per step where tempering is free."""
    half = importlib.import_module(f"halves.with_{setting.backend}")
    if method.num_steps == 0:
        return half.TraceMeanField_ELBO()
    per_step = method.tempering == "free"
    shape = (method.num_steps, setting.net.latent_dim) if per_step else (setting.net.latent_dim,)
    return half.TraceHamiltonian_ELBO(
        method.num_steps,
        half.array(np.full(shape, STEP_SIZE)),
        beta_0=method.beta_0,
        tempering=method.tempering,
        per_step=per_step,
    )


def _log_weights(
    training: Training, images: Images, setting: Setting, *, after_flow: bool
) -> np.ndarray:
    found = training.log_evidence(images.test, num_samples=setting.draws, after_flow=after_flow)
    weights = found.log_weights
    return np.asarray(weights.cpu() if hasattr(weights, "cpu") else weights, float)

"""The runs of the reproduction: each trains something, and returns rows of a table."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from demo import backend as demo_backend
from demo.backend import Training
from demo.data import ImageData
from demo.evaluation import evidence, fit, knn_accuracy
from demo.pictures import Pictures as Pictures
from demo.pictures import take_pictures
from info_vaes.images import load_images, minibatches, setting_for
from infovae_parts import two_points

BETA = 4.0
LEARNING_RATE = 2e-3
MAX_IMAGES = 1000
TWO_POINTS = (
    "loc_minus",
    "loc_plus",
    "scale_minus",
    "scale_plus",
    "evidence",
    "elbo",
    "gap",
    "marginal_kl",
)
SIZES = ("log_det", "log_det_held_out", "log_prob", "unreliable")

SIZES_OBJECTIVES: Mapping[str, Callable[[ModuleType], Any]] = {
    "elbo": lambda b: b.TraceMeanField_ELBO(),
    "beta-vae": lambda b: beta_vae(b, BETA),
    "mmd": lambda b: b.TraceMMD_ELBO(alpha=0.0, lambd=1000.0, estimator="closed_form"),
}

PICTURES_OBJECTIVES: Mapping[str, Callable[[ModuleType], Any]] = {
    "elbo": lambda b: b.TraceMeanField_ELBO(),
    "mmd": lambda b: b.TraceMMD_ELBO(alpha=1.0, lambd=1000.0, estimator="closed_form"),
    "mmd, deterministic": lambda b: b.TraceMMD_ELBO(alpha=1.0, lambd=1000.0),
}


def measure_two_points(
    *, backend: str, device: str, objective: str, seed: int, steps: str
) -> Iterator[dict[str, float]]:
    """What training on two points comes to after each of some steps, separated by spaces."""
    stops = tuple(map(int, steps.split()))
    snapshots = two_points.train(objective, steps=stops, seed=seed, backend=backend, device=device)
    for snapshot in snapshots:
        yield {"step": snapshot.step, **two_points.measures(snapshot)}


def measure_size(
    *,
    backend: str,
    device: str,
    data_dir: str,
    objective: str,
    size: int,
    steps: int,
    latent_dim: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    """What training on so many binary images comes to on held-out ones."""
    data = load_images(data_dir, seed).binarised()
    images = data.train_images[np.random.default_rng(seed).permutation(len(data.train_images))]
    images, held_out = images[:size], data.test_images[:MAX_IMAGES]
    half = demo_backend.load(backend)
    setting = setting_for(data, latent_dim, LEARNING_RATE, seed=seed, device=device)
    training = half.start(lambda: SIZES_OBJECTIVES[objective](half), images, setting)
    training.epoch(minibatches(size, steps, np.random.default_rng(seed)))
    yield {
        "log_det": log_det(*training.posterior(images)),
        "log_det_held_out": log_det(*training.posterior(held_out)),
        **evidence(training, held_out),
    }


def picture(
    objective: str, *, backend: str, device: str, data_dir: str, steps: int, seed: int
) -> tuple[Pictures, dict[str, float | str]]:
    """A 2-D code of grey images, to look at and in numbers."""
    data = load_images(data_dir, seed)
    setting = setting_for(data, 2, LEARNING_RATE, seed=seed, device=device)
    half, build = demo_backend.load(backend), None
    if "deterministic" in objective:
        build = partial(half.build_vae, kind=deterministic(half))
    training = half.start(
        lambda: PICTURES_OBJECTIVES[objective](half), data.train_images, setting, build
    )
    order = np.random.default_rng(seed)
    training.epoch(minibatches(len(data.train_images), steps, order))
    return take_pictures(training, data, setting), {
        "objective": objective,
        **codes_measures(training, data),
    }


def codes_measures(training: Training, data: ImageData) -> dict[str, float]:
    """What the codes are worth, on held-out images and per image."""
    images = data.test_images[:MAX_IMAGES]
    with np.errstate(divide="ignore"):  # of the KL, which a point mass has none of
        found = fit(training, images, levels=data.levels)
    return {
        "reconstruction": found.reconstruction,
        "log_det": log_det(*training.posterior(images)),
        "mmd_squared": found.mmd_squared,
        "knn_accuracy": knn_accuracy(training, data),
    }


def deterministic(half: ModuleType) -> Any:
    """The demo's autoencoder, whose guide is a point mass at the mean of q(z|x)."""

    class DeterministicVAE(half.VAE):
        def posterior(self, *given: Any) -> Any:
            return half.dist.Delta(super().posterior(*given).mean, event_dim=1)

    return DeterministicVAE


def beta_vae(half: ModuleType, beta: float) -> Any:
    """The member of the InfoVAE family whose MMD has no weight."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of just that
        return half.TraceMMD_ELBO(alpha=1 - beta, lambd=beta)


def log_det(loc: np.ndarray, scale: np.ndarray) -> float:
    """Of the covariance of q(z), the mixture of the normals of some data.

    It is 0 for the prior's own covariance, the identity.

    Args:
        loc: Means of q(z|x), of shape (n, d).
        scale: Standard deviations, of shape (n, d).
    """
    covariance = np.cov(loc.T, bias=True) + np.diag(np.mean(scale**2, axis=0))
    return float(np.linalg.slogdet(np.float64(covariance))[1])

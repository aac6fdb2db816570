"""The runs of the reproduction: each trains something, and returns rows of a table."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from demo import backend as demo_backend
from demo.backend import Backend, Setting, Training
from demo.data import ImageData
from demo.evaluation import binomial_log_prob
from demo.pictures import Pictures as Pictures
from demo.pictures import take_pictures
from info_vaes.images import load_images, minibatches
from infovae_parts import backends, two_points

BETA = 4.0
LEARNING_RATE = 2e-3
MAX_IMAGES = 1000
IMPORTANCE_SAMPLES = 500
RELIABLE_PARETO_K = 0.7
NEIGHBOURS = 5
NOISE_SEED = 20170607

SIZES_OBJECTIVES: Mapping[str, Callable[[Backend], Any]] = {
    "elbo": lambda b: b.TraceMeanField_ELBO(),
    "beta-vae": lambda b: beta_vae(b, BETA),
    "mmd": lambda b: b.TraceMMD_ELBO(alpha=0.0, lambd=1000.0, estimator="closed_form"),
}

PICTURES_OBJECTIVES: Mapping[str, Callable[[Backend], Any]] = {
    "elbo": lambda b: b.TraceMeanField_ELBO(),
    "mmd": lambda b: b.TraceMMD_ELBO(alpha=1.0, lambd=1000.0, estimator="closed_form"),
    "mmd, deterministic": lambda b: b.TraceMMD_ELBO(alpha=1.0, lambd=1000.0),
}


@dataclass(frozen=True)
class Source:
    """Where to compute, and on which images.

    Attributes:
        backend: `pyro` or `numpyro`.
        device: Where, with Pyro.
        data_dir: Folder with IDX files; where it is empty, the digits of scikit-learn.
    """

    backend: str
    device: str
    data_dir: str

    def images(self, seed: int) -> ImageData:
        """The images."""
        return load_images(self.data_dir, seed)

    def setting(self, data: ImageData, *, latent_dim: int, seed: int) -> Setting:
        """What a training has to know."""
        return Setting(
            pixels=data.pixels,
            levels=data.levels,
            latent_dim=latent_dim,
            autoregressive=False,
            learning_rate=LEARNING_RATE,
            seed=seed,
            device=self.device if self.backend == "pyro" else None,
        )


def measure_two_points(
    *, backend: str, device: str, objective: str, seed: int, steps: str
) -> Iterator[dict[str, float]]:
    """What training on two points comes to after each of some steps, separated by spaces."""
    train = backends.load(backend).train_two_points
    stops = tuple(map(int, steps.split()))
    for snapshot in train(objective, steps=stops, seed=seed, device=device):
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
    source = Source(backend, device, data_dir)
    data = source.images(seed).binarised()
    images = data.train_images[np.random.default_rng(seed).permutation(len(data.train_images))]
    images, held_out = images[:size], data.test_images[:MAX_IMAGES]
    training = backends.load(backend).start(
        lambda: SIZES_OBJECTIVES[objective](demo_backend.load(backend)),
        images,
        source.setting(data, latent_dim=latent_dim, seed=seed),
    )
    training.epoch(minibatches(size, steps, np.random.default_rng(seed)))
    evidence = training.log_evidence(held_out, num_samples=IMPORTANCE_SAMPLES)
    yield {
        "log_det": log_det(*training.posterior(images)),
        "log_det_held_out": log_det(*training.posterior(held_out)),
        "log_prob": float(np.mean(np.asarray(evidence.log_evidence))),
        "unreliable": float(np.mean(np.asarray(evidence.pareto_k) > RELIABLE_PARETO_K)),
    }


def picture(
    source: Source, objective: str, *, steps: int, seed: int
) -> tuple[Pictures, dict[str, float | str]]:
    """A 2-D code of grey images, to look at and in numbers."""
    data = source.images(seed)
    setting = source.setting(data, latent_dim=2, seed=seed)
    trainings = backends.load(source.backend)
    start = trainings.start_deterministic if "deterministic" in objective else trainings.start
    training = start(
        lambda: PICTURES_OBJECTIVES[objective](demo_backend.load(source.backend)),
        data.train_images,
        setting,
    )
    order = np.random.default_rng(seed)
    training.epoch(minibatches(len(data.train_images), steps, order))
    return take_pictures(training, data, setting), {
        "objective": objective,
        **codes_measures(training, data),
    }


def codes_measures(training: Training, data: ImageData) -> dict[str, float]:
    """What the codes are worth, on held-out images and per image."""
    images, labels = data.test_images[:MAX_IMAGES], data.test_labels[:MAX_IMAGES]
    noise = np.random.default_rng(NOISE_SEED)

    def codes(images: np.ndarray) -> np.ndarray:
        loc, scale = training.posterior(images)
        return loc + scale * noise.standard_normal(loc.shape, np.float32)

    classifier = KNeighborsClassifier(NEIGHBOURS)
    classifier.fit(codes(data.train_images), data.train_labels)
    z = codes(images)
    prior = noise.standard_normal((MAX_IMAGES, z.shape[1]), np.float32)
    log_likelihood = binomial_log_prob(images, training.logits(z, images), levels=data.levels)
    return {
        "reconstruction": -float(log_likelihood.mean()),
        "log_det": log_det(*training.posterior(images)),
        "mmd_squared": training.mmd_squared(z, prior),
        "knn_accuracy": float(classifier.score(z, labels)),
    }


def beta_vae(half: Backend, beta: float) -> Any:
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

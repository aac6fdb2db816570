"""What a training was worth, measured on held-out images alike for every objective."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from pyro.infer import ELBO
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.distributions import kl_divergence

from demo.data import ImageData
from demo.vae import VAE
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.diagnostics import Evidence, log_evidence
from pyro_infovae.evidence import RELIABLE_PARETO_K
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

MAX_IMAGES = 2000
NEIGHBOURS = 5
PRIOR_DRAWS = 1000
LOSS_DRAWS = 10
IMPORTANCE_SAMPLES = 500
NOISE_SEED = 20170607


@dataclass(frozen=True)
class Fit:
    """How model and guide fit held-out images, whatever they were trained with.

    Attributes:
        reconstruction: -E_q[log p(x|z)] in nats per image.
        kl: KL(q(z|x) ‖ p(z)) in nats per image.
        mmd_squared: MMD²(q(z), p(z)), unbiased: it may be slightly negative.
    """

    reconstruction: float
    kl: float
    mmd_squared: float


@dataclass(frozen=True)
class Scores(Fit):
    """A row of the table, but for the seconds.

    Attributes:
        loss: The objective's own loss in nats per image.
        log_prob: The importance-weighted estimate of log p(x) in nats per image.
        unreliable: The share of images whose estimate is not to be believed (Pareto k above 0.7).
        knn_accuracy: Of a nearest-neighbour classifier on the codes.
    """

    loss: float
    log_prob: float
    unreliable: float
    knn_accuracy: float


@torch.no_grad()
def fit(vae: VAE, images: Tensor) -> Fit:
    """Measure reconstruction, KL and MMD² on at most `MAX_IMAGES` images.

    Args:
        vae: Holds the model and the guide.
        images: Held-out images, of shape (n, pixels).
    """
    images = images[:MAX_IMAGES]
    prior, posterior = vae.prior(images), vae.posterior(images)
    with same_noise(images.device):
        z = posterior.sample()
        prior_z = prior.sample((PRIOR_DRAWS,))
    return Fit(
        reconstruction=-vae.likelihood(z).log_prob(images).mean().item(),
        kl=kl_divergence(posterior, prior).mean().item(),
        mmd_squared=mmd_squared(z, prior_z, RBF()).item(),
    )


@torch.no_grad()
def evaluate(vae: VAE, objective: ELBO, data: ImageData) -> Scores:
    """Measure everything that the table holds on at most `MAX_IMAGES` held-out images.

    Args:
        vae: Holds the trained model and guide.
        objective: What they were trained with.
        data: The images.
    """
    images, labels = data.test_images[:MAX_IMAGES], data.test_labels[:MAX_IMAGES]
    rows = torch.arange(len(images), device=images.device)
    with same_noise(images.device):
        losses = [objective.loss(vae.model, vae.guide, images, rows) for _ in range(LOSS_DRAWS)]
        evidence = importance_sample(vae, objective, images, rows)
    classifier = KNeighborsClassifier(NEIGHBOURS)
    classifier.fit(codes(vae, data.train_images), data.train_labels)
    return Scores(
        **vars(fit(vae, images)),
        loss=float(np.mean(losses)) / len(images),
        log_prob=evidence.log_evidence.mean().item(),
        unreliable=(evidence.pareto_k > RELIABLE_PARETO_K).float().mean().item(),
        knn_accuracy=float(classifier.score(codes(vae, images), labels)),
    )


@torch.no_grad()
def codes(vae: VAE, images: Tensor) -> np.ndarray:
    """Posterior means, of shape (n, latent_dim)."""
    return vae.posterior(images).mean.cpu().numpy()


def importance_sample(vae: VAE, objective: ELBO, images: Tensor, rows: Tensor) -> Evidence:
    """Estimate log p(x) of every image from the guide, after its flow where it has one."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the table says it
        return log_evidence(
            vae.model,
            vae.guide,
            images,
            rows,
            num_samples=IMPORTANCE_SAMPLES,
            elbo=objective if isinstance(objective, TraceHamiltonian_ELBO) else None,
        )


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """Draw the same numbers at every entry, and leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(NOISE_SEED)
        yield

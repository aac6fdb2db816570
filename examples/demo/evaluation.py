"""What a training was worth, measured on held-out images alike for every objective."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from pyro.infer import ELBO
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from demo.data import ImageData
from demo.vae import VAE
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

MAX_IMAGES = 2000
NEIGHBOURS = 5
PRIOR_DRAWS = 1000
LOSS_DRAWS = 10
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
        knn_accuracy: Of a nearest-neighbour classifier on the codes.
    """

    loss: float
    log_prob: float
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
        log_prob = torch.cat([log_prob_of_images(vae, batch) for batch in images.split(200)])
    classifier = KNeighborsClassifier(NEIGHBOURS)
    classifier.fit(codes(vae, data.train_images), data.train_labels)
    return Scores(
        **vars(fit(vae, images)),
        loss=float(np.mean(losses)) / len(images),
        log_prob=log_prob.mean().item(),
        knn_accuracy=float(classifier.score(codes(vae, images), labels)),
    )


@torch.no_grad()
def codes(vae: VAE, images: Tensor) -> np.ndarray:
    """Posterior means, of shape (n, latent_dim)."""
    return vae.posterior(images).mean.cpu().numpy()


def log_prob_of_images(vae: VAE, images: Tensor) -> Tensor:
    """Estimate log p(x) of every image, shape (n,), with the guide as the proposal."""
    prior = vae.prior(images)

    def log_joint(z: Tensor) -> Tensor:
        return vae.likelihood(z).log_prob(images) + prior.log_prob(z)

    return importance_weighted_log_prob(log_joint, vae.posterior(images))


def importance_weighted_log_prob(
    log_joint: Callable[[Tensor], Tensor],
    proposal: Distribution,
    *,
    num_samples: int = 500,
    chunk_size: int = 50,
) -> Tensor:
    r"""Estimate the log-evidence of every row.

    .. math:: \log \hat p(x) = \log \frac1S \sum_{s=1}^S \frac{p(x, z_s)}{q(z_s)},
              \qquad z_s \sim q.

    A lower bound in expectation, tight as S grows: "Importance Weighted Autoencoders",
    arXiv 1509.00519.

    Args:
        log_joint: Takes codes of shape (samples, n, d) and returns log p(x, z), (samples, n).
        proposal: q, with batch shape (n,) and event shape (d,).
        num_samples: S.
        chunk_size: How many samples to hold in memory at once.

    Returns:
        The estimates in nats, of shape (n,).
    """
    chunks = []
    for start in range(0, num_samples, chunk_size):
        z = proposal.sample((min(chunk_size, num_samples - start),))
        chunks.append(torch.logsumexp(log_joint(z) - proposal.log_prob(z), dim=0))
    return torch.logsumexp(torch.stack(chunks), dim=0) - np.log(num_samples)


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """Draw the same numbers at every entry, and leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(NOISE_SEED)
        yield

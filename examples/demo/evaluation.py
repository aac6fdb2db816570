"""What a training was worth, measured on held-out images alike for every objective."""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from sklearn.neighbors import KNeighborsClassifier

from demo.backend import Training
from demo.data import ImageData

MAX_IMAGES = 2000
NEIGHBOURS = 5
PRIOR_DRAWS = 1000
LOSS_DRAWS = 10
IMPORTANCE_SAMPLES = 500
RELIABLE_PARETO_K = 0.7
ACTIVE = 0.01
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
        active_units: Dimensions of the code whose posterior mean varies over the images.
        information: The mutual information of images and codes in nats, at most log n.
        knn_accuracy: Of a nearest-neighbour classifier on draws of the code.
    """

    loss: float
    log_prob: float
    unreliable: float
    active_units: int
    information: float
    knn_accuracy: float


def fit(training: Training, images: np.ndarray, *, levels: int) -> Fit:
    """Measure reconstruction, KL and MMD² on at most `MAX_IMAGES` images.

    Args:
        training: Holds the model and the guide.
        images: Held-out images, of shape (n, pixels).
        levels: The greatest count a pixel can have.
    """
    images = images[:MAX_IMAGES]
    noise = np.random.default_rng(NOISE_SEED)
    loc, scale = training.posterior(images)
    z = loc + scale * noise.standard_normal(loc.shape, np.float32)
    prior_z = noise.standard_normal((PRIOR_DRAWS, loc.shape[1]), np.float32)
    log_likelihood = binomial_log_prob(images, training.logits(z, images), levels=levels)
    kl = 0.5 * (loc**2 + scale**2 - 1) - np.log(scale)
    return Fit(
        reconstruction=-float(log_likelihood.mean()),
        kl=float(kl.sum(1).mean()),
        mmd_squared=training.mmd_squared(z, prior_z),
    )


def evaluate(training: Training, data: ImageData) -> Scores:
    """Measure everything that the table holds on at most `MAX_IMAGES` held-out images.

    Args:
        training: Holds the trained model and guide.
        data: The images.
    """
    images = data.test_images[:MAX_IMAGES]
    return Scores(
        **vars(fit(training, images, levels=data.levels)),
        loss=float(np.mean([training.loss(images) for _ in range(LOSS_DRAWS)])) / len(images),
        **evidence(training, images),
        active_units=active_units(training, images),
        information=training.information(images),
        knn_accuracy=knn_accuracy(training, data),
    )


def evidence(training: Training, images: np.ndarray) -> dict[str, float]:
    """The measures of `Scores` that are estimates of log p(x): `log_prob` and `unreliable`."""
    found = training.log_evidence(images, num_samples=IMPORTANCE_SAMPLES)
    return {
        "log_prob": float(np.mean(np.asarray(found.log_evidence))),
        "unreliable": float(np.mean(np.asarray(found.pareto_k) > RELIABLE_PARETO_K)),
    }


def active_units(training: Training, images: np.ndarray) -> int:
    """Dimensions of the code whose posterior mean varies over the images."""
    return int((training.posterior(images)[0].var(0, ddof=1) > ACTIVE).sum())


def knn_accuracy(training: Training, data: ImageData) -> float:
    """Of a nearest-neighbour classifier on codes of at most `MAX_IMAGES` held-out images."""
    images, labels = data.test_images[:MAX_IMAGES], data.test_labels[:MAX_IMAGES]
    classifier = KNeighborsClassifier(NEIGHBOURS)
    classifier.fit(codes(training, data.train_images), data.train_labels)
    return float(classifier.score(codes(training, images), labels))


def codes(training: Training, images: np.ndarray) -> np.ndarray:
    """One draw from q(z|x) per image: where that is the prior, it tells nothing."""
    loc, scale = training.posterior(images)
    return loc + scale * np.random.default_rng(NOISE_SEED).standard_normal(loc.shape, np.float32)


def binomial_log_prob(counts: np.ndarray, logits: np.ndarray, *, levels: int) -> np.ndarray:
    """The log probability of counts, per row of shape (n, pixels), in nats."""
    choices = gammaln(levels + 1.0) - gammaln(counts + 1.0) - gammaln(levels - counts + 1.0)
    return (choices + counts * logits - levels * np.logaddexp(0, logits)).sum(-1)

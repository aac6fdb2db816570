"""One training under `TraceInfoMax_ELBO`, and what its code and its model are worth."""

import math
from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression

from demo.backend import Setting
from demo.evaluation import fit
from info_vaes.images import load_images, minibatches
from infomax_parts import backends

DECODERS = ("mlp", "autoregressive")
LEARNING_RATES = {"mlp": 2e-3, "autoregressive": 1e-2}
MAX_IMAGES = 2000
MAX_PAIRED = 1000
IMPORTANCE_SAMPLES = 500
RELIABLE_PARETO_K = 0.7
NOISE_SEED = 20170607


def measure(
    *,
    backend: str,
    device: str,
    data_dir: str,
    decoder: str,
    alpha: float,
    latent_dim: int,
    steps: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    """What training with this weight of the mutual information comes to.

    Args:
        backend: `pyro` or `numpyro`.
        device: Where to compute, with Pyro.
        data_dir: Folder with IDX files, or nothing.
        decoder: `mlp`, which sees the code alone, or `autoregressive`, which sees the pixels before
            the one that it predicts too.
        alpha: The weight.
        latent_dim: Number of dimensions of the code.
        steps: Gradient steps.
        seed: Fixes split, initial weights and noise.
    """
    data = load_images(data_dir, seed).binarised()
    setting = Setting(
        pixels=data.pixels,
        levels=data.levels,
        latent_dim=latent_dim,
        autoregressive=decoder == "autoregressive",
        learning_rate=LEARNING_RATES[decoder],
        seed=seed,
        device=device if backend == "pyro" else None,
    )
    half = backends.load(backend)
    training = half.start(data.train_images, setting, alpha=alpha)
    training.epoch(minibatches(len(data.train_images), steps, np.random.default_rng(seed)))

    held_out, known = data.test_images[:MAX_IMAGES], data.train_images[:MAX_IMAGES]
    found = fit(training, held_out, levels=data.levels)
    evidence = training.log_evidence(held_out, num_samples=IMPORTANCE_SAMPLES)
    paired = held_out[:MAX_PAIRED]
    loc, scale = training.posterior(paired)
    z = loc + scale * np.random.default_rng(NOISE_SEED).standard_normal(loc.shape, np.float32)
    yield {
        "information": training.information(known),
        "ceiling": math.log(len(known)),
        "critic_bound": half.critic_bound(training, paired, z),
        "active_units": half.active_units(training, held_out),
        "accuracy": linear_accuracy(
            (training.posterior(data.train_images)[0], data.train_labels),
            (training.posterior(held_out)[0], data.test_labels[:MAX_IMAGES]),
        ),
        "log_prob": float(np.mean(np.asarray(evidence.log_evidence))),
        "unreliable": float(np.mean(np.asarray(evidence.pareto_k) > RELIABLE_PARETO_K)),
        "kl": found.kl,
        "mmd_squared": found.mmd_squared,
    }


def linear_accuracy(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> float:
    """Of a logistic regression of labels on posterior means, as they are: on held-out images.

    The penalty on its coefficients keeps it from reading what is told by means that hardly vary.
    """
    return float(LogisticRegression(max_iter=1000).fit(*train).score(*test))

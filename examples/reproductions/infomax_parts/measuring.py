"""One training under `TraceInfoMax_ELBO`, and what its code and its model are worth."""

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from demo.backend import Setting, Training, load
from demo.evaluation import MAX_IMAGES, active_units, codes, evidence, fit
from info_vaes.images import load_images, minibatches, setting_for

DECODERS = ("mlp", "autoregressive")
LEARNING_RATES = {"mlp": 2e-3, "autoregressive": 1e-2}
MAX_PAIRED = 1000
CRITIC_WIDTHS = (128, 128)
MEASURES = (
    "information",
    "ceiling",
    "critic_bound",
    "active_units",
    "accuracy",
    "log_prob",
    "unreliable",
    "kl",
    "mmd_squared",
)


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
    autoregressive, rate = decoder == "autoregressive", LEARNING_RATES[decoder]
    more = {"autoregressive": autoregressive, "seed": seed, "device": device}
    setting = setting_for(data, latent_dim, rate, **more)
    critic_bound = importlib.import_module(f"infomax_parts.critic_{backend}").critic_bound
    training = start(backend, data.train_images, setting, alpha=alpha)
    training.epoch(minibatches(len(data.train_images), steps, np.random.default_rng(seed)))

    held_out, known = data.test_images[:MAX_IMAGES], data.train_images[:MAX_IMAGES]
    found = fit(training, held_out, levels=data.levels)
    paired = held_out[:MAX_PAIRED]
    yield {
        "information": training.information(known),
        "ceiling": math.log(len(known)),
        "critic_bound": critic_bound(training, paired, codes(training, paired)),
        "active_units": active_units(training, held_out),
        "accuracy": linear_accuracy(
            (training.posterior(data.train_images)[0], data.train_labels),
            (training.posterior(held_out)[0], data.test_labels[:MAX_IMAGES]),
        ),
        **evidence(training, held_out),
        "kl": found.kl,
        "mmd_squared": found.mmd_squared,
    }


def start(backend: str, images: np.ndarray, setting: Setting, *, alpha: float) -> Training:
    """The demo's training, under another objective."""
    half = load(backend)

    def objective() -> Any:
        critic = half.ConcatCritic(setting.pixels, setting.latent_dim, CRITIC_WIDTHS)
        return half.TraceInfoMax_ELBO(critic, alpha, bound="js")

    return half.start(objective, images, setting)


def linear_accuracy(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> float:
    """Of a logistic regression of labels on posterior means, as they are: on held-out images.

    The penalty on its coefficients keeps it from reading what is told by means that hardly vary.
    """
    return float(LogisticRegression(max_iter=1000).fit(*train).score(*test))

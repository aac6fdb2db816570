"""What the demo asks of Pyro or NumPyro, in plain arrays: it works alike with either."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

NAMES = ("pyro", "numpyro")


class BackendError(Exception):
    """A backend cannot be had as asked; the message says what to do."""


@dataclass(frozen=True)
class Setting:
    """What a training has to know.

    Attributes:
        pixels: Number of pixels of an image.
        levels: The greatest count a pixel can have.
        latent_dim: Number of dimensions of the code.
        autoregressive: Whether the decoder sees the pixels before the one it predicts.
        learning_rate: Adam's.
        seed: Fixes initial weights and noise.
        device: Where model and guide live, or None for the backend's default.
    """

    pixels: int
    levels: int
    latent_dim: int
    autoregressive: bool
    learning_rate: float
    seed: int
    device: str | None


class Evidence(Protocol):
    """The part of a backend's evidence estimate that the demo reads."""

    log_evidence: Any
    pareto_k: Any


class Training(Protocol):
    """A model, a guide and an objective that trains them. Images are of shape (n, pixels)."""

    def epoch(self, minibatches: Sequence[np.ndarray]) -> float:
        """Take a step per minibatch of rows; the loss in nats, averaged over the rows."""

    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of q(z|x), of shape (n, latent_dim) each."""

    def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Logits of p(x|z), of shape (n, pixels); an autoregressive decoder sees the images."""

    def loss(self, images: np.ndarray) -> float:
        """The objective's own loss in nats, summed over the images."""

    def log_evidence(self, images: np.ndarray, *, num_samples: int) -> Evidence:
        """Estimates of log p(x), from the guide after its flow where it has one."""

    def information(self, images: np.ndarray) -> float:
        """The mutual information of these images and their codes, in nats."""

    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        """The unbiased MMD² of two samples, of shape (n, latent_dim) and (m, latent_dim)."""


class Backend(Protocol):
    """A package with the names of the objectives and of what they need, and a training."""

    TraceMeanField_ELBO: Any
    TraceMMD_ELBO: Any
    TraceInfoMax_ELBO: Any
    TraceHamiltonian_ELBO: Any
    ConcatCritic: Any

    def start(self, objective: Callable[[], Any], images: np.ndarray, setting: Setting) -> Training:
        """A training that has taken no step yet."""

    def check_device(self, name: str | None) -> None:
        """Refuse a device that cannot be used.

        Raises:
            BackendError: saying why.
        """

    def versions(self) -> dict[str, str]:
        """The versions of the packages it is made of."""


def load(name: str) -> Backend:
    """Import a backend.

    Args:
        name: One of `NAMES`.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return importlib.import_module(f"demo.with_{name}")
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        extra = "demo,numpyro" if name == "numpyro" else "demo"
        raise BackendError(
            f"--backend {name} needs {missing}: pip install 'pyro-infovae[{extra}]'"
        ) from error

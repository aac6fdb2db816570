"""What the demo asks of Pyro or NumPyro, in plain arrays: it works alike with either."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from halves import Trained

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
        learning_rate: The optimiser's.
        seed: Fixes initial weights and noise.
        autoregressive: Whether the decoder sees the pixels before the one it predicts.
        device: Where model and guide live with Pyro, or None for its default.
        optimiser: `adam` or, where steps are captured, `adamax`.
        compiled: Whether Pyro's steps are captured and replayed; JAX compiles its own anyway.
    """

    pixels: int
    levels: int
    latent_dim: int
    learning_rate: float
    seed: int
    autoregressive: bool = False
    device: str | None = None
    optimiser: str = "adam"
    compiled: bool = False


class Training(Trained, ABC):
    """A model, a guide and an objective that trains them. Images are of shape (n, pixels).

    Attributes:
        vae: Holds model and guide.
        images: All training images, as the backend has them.
    """

    vae: Any
    images: Any

    def epoch(self, minibatches: Sequence[np.ndarray]) -> float:
        """Take a step per minibatch of rows; the loss in nats, averaged over the rows."""
        loss = sum(self.step(self.images, rows) * len(rows) for rows in minibatches)
        return float(loss) / len(self.images)

    def log_evidence(self, images: np.ndarray, *, num_samples: int, after_flow: bool = True) -> Any:
        """Estimates of log p(x), from the guide, after its flow where it has one."""
        given = self.all_of(images)
        return self.evidence(*given, num_samples=num_samples, after_flow=after_flow)

    def information(self, images: np.ndarray) -> float:
        """The mutual information of these images and their codes, in nats."""
        question = self.diagnostics.aggregated_posterior
        return float(self.ask(question, *self.all_of(images)).mutual_information)

    @abstractmethod
    def all_of(self, images: np.ndarray) -> tuple[Any, Any]:
        """The images and the numbers of all their rows, as the backend has them."""

    @abstractmethod
    def step(self, images: Any, rows: np.ndarray) -> Any:
        """Take a step on rows of some images; the loss in nats, of all of these images."""

    @abstractmethod
    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of q(z|x), of shape (n, latent_dim) each."""

    @abstractmethod
    def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Logits of p(x|z), of shape (n, pixels); an autoregressive decoder sees the images."""

    @abstractmethod
    def loss(self, images: np.ndarray) -> float:
        """The objective's own loss in nats, summed over the images."""

    @abstractmethod
    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        """The unbiased MMD² of two samples, of shape (n, latent_dim) and (m, latent_dim)."""


def load(name: str) -> ModuleType:
    """Import a backend: the objectives and what they need, `start`, `check_device`, `versions`.

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

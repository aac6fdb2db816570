"""What the measurements ask of Pyro or NumPyro, beyond what the demo does."""

import importlib
from typing import Protocol, cast

import numpy as np

from demo.backend import Setting, Training

BOUND = "js"
CRITIC_WIDTHS = (128, 128)


class Trainings(Protocol):
    """Trainings under `TraceInfoMax_ELBO`, and what they were worth."""

    def start(self, images: np.ndarray, setting: Setting, *, alpha: float) -> Training:
        """A training that has taken no step yet."""

    def critic_bound(self, training: Training, images: np.ndarray, z: np.ndarray) -> float:
        """What the trained critic makes of I(x; z), in nats, from all pairs of images and codes."""

    def active_units(self, training: Training, images: np.ndarray) -> int:
        """Dimensions of the code whose posterior mean varies over the images."""


def load(name: str) -> Trainings:
    """The trainings with `pyro` or `numpyro`."""
    return cast(Trainings, importlib.import_module(f"infomax_parts.with_{name}"))

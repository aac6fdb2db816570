"""What the parts ask of Pyro or NumPyro."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np

from demo.backend import Setting, Training
from infovae_parts.two_points import Snapshot


class Trainings(Protocol):
    """Trainings that have taken no step yet, and the one on two points."""

    def start(self, objective: Callable[[], Any], images: np.ndarray, setting: Setting) -> Training:
        """Of the demo's variational autoencoder."""

    def start_deterministic(
        self, objective: Callable[[], Any], images: np.ndarray, setting: Setting
    ) -> Training:
        """Of the same with a guide that gives every image one code: a point mass."""

    def train_two_points(
        self, objective: str, *, steps: tuple[int, ...], seed: int, device: str
    ) -> Iterator[Snapshot]:
        """Train on the two points, and stop at these steps, in increasing order."""


def load(name: str) -> Trainings:
    """The trainings with `pyro` or `numpyro`."""
    return cast(Trainings, importlib.import_module(f"infovae_parts.with_{name}"))

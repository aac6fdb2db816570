"""What is compared, and what both backends train with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH = 100
STEP_SIZE = 0.2
FREE_FACTOR = 0.9
BETA_0 = 1 / 1.5


@dataclass(frozen=True)
class Method:
    """An objective.

    Attributes:
        num_steps: Leapfrog steps K from the encoder's draw; 0 for the plain VAE.
        tempering: Their tempering.
    """

    num_steps: int = 0
    tempering: str = "none"

    @property
    def gradients(self) -> int:
        """What an optimisation step costs, in gradients of the log joint."""
        return self.num_steps + 1

    @property
    def beta_0(self) -> float:
        """The initial inverse temperature; free tempering starts with factors of 0.9."""
        return FREE_FACTOR ** (2 * self.num_steps) if self.tempering == "free" else BETA_0


VAE = "VAE"
METHODS = {
    VAE: Method(),
    "HVAE K=1, quadratic": Method(1, "quadratic"),
    "HVAE K=5, none": Method(5),
    "HVAE K=5, quadratic": Method(5, "quadratic"),
    "HVAE K=5, free": Method(5, "free"),
    "HVAE K=10, free": Method(10, "free"),
}


@dataclass(frozen=True)
class Net:
    """The size of encoder and decoder.

    Attributes:
        latent_dim: Dimensions of the code.
        hidden: Width of the dense layer.
        channels: Of the convolutions of the encoder; none for dense layers alone.
    """

    latent_dim: int
    hidden: int
    channels: tuple[int, ...] = ()

    def sides(self, side: int) -> list[int]:
        """Height of the maps, from an image's on: each convolution halves it."""
        found = [side]
        for _ in self.channels:
            found.append((found[-1] + 1) // 2)
        return found


@dataclass(frozen=True)
class Setting:
    """How to train and to measure.

    Attributes:
        data_dir: Folder with IDX files; None for scikit-learn's digits.
        pooled: Side of the squares of the scans that are averaged into a pixel.
        num_test: Most test images.
        net: The size of encoder and decoder.
        methods: Those to compare.
        gradients: The budget of each, in gradients of the log joint.
        learning_rate: Adamax's.
        draws: Importance samples per test image.
        backend: `pyro` or `numpyro`.
        device: Where to compute, with Pyro.
    """

    data_dir: Path | None
    pooled: int
    num_test: int
    net: Net
    methods: tuple[str, ...]
    gradients: int
    learning_rate: float
    draws: int
    backend: str
    device: str


@dataclass(frozen=True)
class Snapshot:
    """What has been learned after some steps.

    Attributes:
        steps: Optimisation steps taken.
        own: Log importance weights of the guide that was trained, after its flow where it has
            one, of shape (draws, test images).
        encoder: Those of the encoder alone, likewise.
        step_size: Mean step size; 0 without a flow.
        beta_0: Initial inverse temperature; 1 without a flow.
    """

    steps: int
    own: NDArray[np.float64]
    encoder: NDArray[np.float64]
    step_size: float = 0.0
    beta_0: float = 1.0

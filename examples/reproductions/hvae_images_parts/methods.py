"""What is compared, and what both backends train with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import hvae_gaussian_parts.methods

BATCH = 100
STEP_SIZE = 0.2
FREE_FACTOR = 0.9
BETA_0 = 1 / 1.5


class Method(hvae_gaussian_parts.methods.Method):
    """An objective, whose leapfrog steps start at the encoder's draw; 0 for the plain VAE."""

    @property
    def beta_0(self) -> float:
        """The initial inverse temperature; free tempering starts with factors of 0.9."""
        return FREE_FACTOR ** (2 * self.num_steps) if self.tempering == "free" else BETA_0


VAE = "VAE"
METHODS = {
    VAE: Method(0),
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

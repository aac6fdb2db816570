"""What the figures show of a trained model, as plain arrays."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demo.data import ImageData
from demo.evaluation import MAX_IMAGES, same_noise
from demo.vae import VAE

GRID_LIMIT = 3.0
GRID_SIDE = 17
SAMPLES_SIDE = 8


@dataclass(frozen=True)
class Pictures:
    """A model seen through a plane of its code space.

    The plane is the code space itself where that has two dimensions, else it is spanned by the
    first two principal directions of the held-out codes; it always goes through the origin.

    Attributes:
        codes: One draw from q(z|x) for each held-out image, in the plane, of shape (n, 2).
        labels: The classes of these images, of shape (n,).
        samples: Mean images of draws from the prior, of shape (side, side, height, width).
        manifold: Mean images of a grid over the plane, rows from top to bottom, of the same shape.
    """

    codes: np.ndarray
    labels: np.ndarray
    samples: np.ndarray
    manifold: np.ndarray


@torch.no_grad()
def take_pictures(vae: VAE, data: ImageData) -> Pictures:
    """Look at a trained model."""
    images, labels = data.test_images[:MAX_IMAGES], data.test_labels[:MAX_IMAGES]
    with same_noise(images.device):
        z = vae.posterior(images).sample()
        prior_z = vae.prior(images).sample((SAMPLES_SIDE, SAMPLES_SIDE))
    plane = principal_plane(z)

    def decode(z: Tensor) -> np.ndarray:
        intensities = vae.likelihood(z).mean / data.levels
        return intensities.reshape(*z.shape[:-1], *data.image_shape).cpu().numpy()

    axis = torch.linspace(-GRID_LIMIT, GRID_LIMIT, GRID_SIDE, device=z.device)
    grid = torch.cartesian_prod(axis.flip(0), axis).flip(-1).reshape(GRID_SIDE, GRID_SIDE, 2)
    return Pictures(
        codes=(z @ plane).cpu().numpy(),
        labels=labels,
        samples=decode(prior_z),
        manifold=decode(grid @ plane.T),
    )


def principal_plane(z: Tensor) -> Tensor:
    """Orthonormal directions, shape (d, 2): the principal ones, or the axes where d is 2."""
    if z.shape[-1] == 2:
        return torch.eye(2, dtype=z.dtype, device=z.device)
    _, _, directions = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    return directions[:2].T

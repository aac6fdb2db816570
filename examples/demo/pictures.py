"""What the figures show of a trained model, as plain arrays."""

from dataclasses import dataclass

import numpy as np

from demo.backend import Setting, Training
from demo.data import ImageData
from demo.evaluation import MAX_IMAGES, NOISE_SEED, codes

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
        samples: Images of draws from the prior, of shape (side, side, height, width).
        manifold: Images of a grid over the plane, rows from top to bottom, of the same shape.
    """

    codes: np.ndarray
    labels: np.ndarray
    samples: np.ndarray
    manifold: np.ndarray


def take_pictures(training: Training, data: ImageData, setting: Setting) -> Pictures:
    """Look at a trained model."""
    z = codes(training, data.test_images[:MAX_IMAGES])
    noise = np.random.default_rng(NOISE_SEED)
    prior_z = noise.standard_normal((SAMPLES_SIDE, SAMPLES_SIDE, z.shape[1]), np.float32)
    plane = principal_plane(z)

    def decode(grid: np.ndarray) -> np.ndarray:
        flat = grid.reshape(-1, grid.shape[-1])
        if setting.autoregressive:
            images = draw_pixels(training, flat, setting.pixels)
        else:
            images = _sigmoid(training.logits(flat, np.zeros((len(flat), setting.pixels), "f")))
        return images.reshape(*grid.shape[:-1], *data.image_shape)

    axis = np.linspace(-GRID_LIMIT, GRID_LIMIT, GRID_SIDE, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis[::-1]), axis=-1)
    return Pictures(
        codes=z @ plane,
        labels=data.test_labels[:MAX_IMAGES],
        samples=decode(prior_z),
        manifold=decode(grid @ plane.T),
    )


def draw_pixels(training: Training, z: np.ndarray, pixels: int) -> np.ndarray:
    """Draw binary images pixel by pixel, with the same noise for every code."""
    noise = np.random.default_rng(NOISE_SEED).random(pixels, np.float32)
    images = np.zeros((len(z), pixels), np.float32)
    for pixel in range(pixels):
        images[:, pixel] = noise[pixel] < _sigmoid(training.logits(z, images)[:, pixel])
    return images


def principal_plane(z: np.ndarray) -> np.ndarray:
    """Orthonormal directions, shape (d, 2): the principal ones, or the axes where d is 2."""
    if z.shape[-1] == 2:
        return np.eye(2, dtype=z.dtype)
    _, _, directions = np.linalg.svd(z - z.mean(0), full_matrices=False)
    return directions[:2].T


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))

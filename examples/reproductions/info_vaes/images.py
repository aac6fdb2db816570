"""The images, and the minibatches that a training sees of them."""

from pathlib import Path
from typing import Any

import numpy as np

from demo.backend import Setting
from demo.data import DataError as DataError
from demo.data import ImageData, load
from reproduction.options import Options

DATA_DIR_HELP = (
    "folder with MNIST's IDX files, or others like them (default: the digits of scikit-learn; "
    "--full needs it)"
)
BATCH_SIZE = 100


def folder(options: Options) -> str:
    """The folder with IDX files that was asked for, or nothing.

    Raises:
        DataError: One is needed.
    """
    if options.data_dir is not None:
        return str(options.data_dir)
    if options.effort == "full":
        raise DataError("--full needs --data-dir, a folder with MNIST's IDX files")
    return ""


def load_images(data_dir: str, seed: int) -> ImageData:
    """The images of a folder, as ink or none, or the digits of scikit-learn, as counts.

    Raises:
        DataError: The folder has none.
    """
    if not data_dir:
        return load("digits", data_dir=None, seed=seed)
    return load("mnist", data_dir=Path(data_dir), seed=seed)


def setting_for(data: ImageData, latent_dim: int, learning_rate: float, **more: Any) -> Setting:
    """What a training on the images has to know."""
    return Setting(data.pixels, data.levels, latent_dim, learning_rate, compiled=True, **more)


def minibatches(
    size: int, steps: int, order: np.random.Generator, *, batch_size: int = BATCH_SIZE
) -> list[np.ndarray]:
    """Minibatches of one size for so many steps, epoch after epoch in another order."""
    batch_size = min(batch_size, size)
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        rows = order.permutation(size)
        batches += np.split(rows[: size - size % batch_size], size // batch_size)
    return batches[:steps]

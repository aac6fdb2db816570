"""Images as intensities, of which every minibatch is binarised anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from demo.data import DataError, read_idx

Array = NDArray[np.float32]

HELD_OUT = 0.2


@dataclass(frozen=True)
class Images:
    """Training and test images.

    Attributes:
        train: Probabilities of ink, of shape (n, pixels).
        test: Held-out images, binarised once, of shape (m, pixels).
        side: Height and width of an image.
    """

    train: Array
    test: Array
    side: int


def load(folder: Path | None, *, pooled: int, num_test: int) -> Images:
    """The images of a folder with MNIST's IDX files, or scikit-learn's digits.

    Args:
        folder: Holds `train` and `t10k` images, or one of both, of which a fifth is then held out.
            None for the digits.
        pooled: Side of the squares of the scans that are averaged into a pixel.
        num_test: Most test images.

    Raises:
        DataError: No images; the message says why.
    """
    if folder is None:
        train, test = _hold_out(load_digits().images / 16)
    else:
        parts = [_pool(read_idx(path, ndim=3) / 255, pooled) for path in _files(folder)]
        train, test = parts if len(parts) == 2 else _hold_out(parts[0])
    test = test[:num_test]
    inked = np.random.default_rng(0).random(test.shape) < test
    return Images(_flat(train), _flat(inked), train.shape[1])


def _files(folder: Path) -> list[Path]:
    """Training images first, where there are both."""
    names = [f"{part}-images-idx3-ubyte" for part in ("train", "t10k")]
    files = [path for name in names for path in sorted(folder.glob(f"{name}*"))[:1]]
    if not files:
        raise DataError(
            f"Found no IDX files in {folder}; looked for train-images-idx3-ubyte and "
            "t10k-images-idx3-ubyte, each with or without .gz"
        )
    return files


def _hold_out(images: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    train, test = train_test_split(images, test_size=HELD_OUT, random_state=0)
    return train, test


def _pool(images: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    count, height, width = images.shape
    return images.reshape(count, height // size, size, width // size, size).mean((2, 4))


def _flat(images: NDArray[np.generic]) -> Array:
    return images.reshape(len(images), -1).astype(np.float32)

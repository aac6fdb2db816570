"""Images of handwritten digits or clothes, as counts that a discrete likelihood can score."""

import gzip
import math
import socket
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split

OPENML_NAMES = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}
NAMES = ("digits", *OPENML_NAMES)
HELD_OUT_FRACTION = 0.2
IDX_UNSIGNED_BYTES = 0x08

Arrays = tuple[np.ndarray, np.ndarray]


class DataError(Exception):
    """The data asked for cannot be had; the message says what to do."""


@dataclass(frozen=True)
class ImageData:
    """Training and held-out images with their labels.

    Attributes:
        train_images: Counts in `0..levels`, of shape (n, pixels).
        train_labels: Classes in `0..9`, of shape (n,).
        test_images: The held-out images, of shape (m, pixels).
        test_labels: Their classes, of shape (m,).
        image_shape: Height and width of an image.
        levels: The greatest count a pixel can have.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    image_shape: tuple[int, int]
    levels: int

    @property
    def pixels(self) -> int:
        """Number of pixels of an image."""
        return math.prod(self.image_shape)

    def binarised(self) -> "ImageData":
        """The same with pixels of which half or more is inked, and others."""
        train, test = (
            (images >= self.levels / 2).astype(images.dtype)
            for images in (self.train_images, self.test_images)
        )
        return ImageData(
            train, self.train_labels, test, self.test_labels, self.image_shape, levels=1
        )


def load(name: str, *, data_dir: Path | None, seed: int) -> ImageData:
    """Load one of `NAMES`, split into training and held-out images.

    A pixel of `load_digits` is the number of inked cells in a 4 × 4 block of the original scan, so
    it is a count out of 16 as it stands. A pixel of the other data sets is an intensity; each is
    turned once into a count out of 1 (ink or none), drawn with the intensity as its probability.

    Args:
        name: One of `NAMES`.
        data_dir: Folder with IDX files; None downloads (`digits` takes none).
        seed: Fixes the split and the draw of the counts.

    Raises:
        DataError: No data; the message says why.
    """
    if name == "digits" and data_dir is not None:
        raise DataError(
            "--data-dir is for --data mnist or fashion-mnist; the digits come with scikit-learn"
        )
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        train, test = _hold_out(images.reshape(-1, 8, 8), labels, seed=seed)
        return _as_counts(train, test, levels=16)
    train, test = _fetch(name) if data_dir is None else _read_folder(data_dir, seed=seed)
    rng = np.random.default_rng(seed)
    return _as_counts(_binarise(train, rng), _binarise(test, rng), levels=1)


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: The file.
        ndim: Number of dimensions it must have (3 for images, 1 for labels).

    Raises:
        DataError: The file is damaged or holds something else.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    magic, expected = content[:4], bytes([0, 0, IDX_UNSIGNED_BYTES, ndim])
    if magic != expected:
        raise DataError(
            f"Expected an IDX file of {ndim}-dimensional unsigned bytes (magic number "
            f"{expected.hex()}) in {path}; got magic number {magic.hex() or 'nothing'}"
        )
    header = 4 + 4 * ndim
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"Expected {header + math.prod(shape)} bytes in {path} (an IDX file of shape {shape}); "
            f"got {len(content)}: the file is damaged"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_folder(folder: Path, *, seed: int) -> tuple[Arrays, Arrays]:
    parts = {part: _read_part(folder, part) for part in ("train", "t10k")}
    found = {part: arrays for part, arrays in parts.items() if arrays is not None}
    if not found:
        raise DataError(
            f"Found no IDX files in {folder}; looked for train-images-idx3-ubyte, "
            "train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, "
            "each with or without .gz"
        )
    if len(found) == 1:
        return _hold_out(*found.popitem()[1], seed=seed)
    train, test = found["train"], found["t10k"]
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"Expected train and t10k images of one size in {folder}; "
            f"got {train[0].shape[1:]} and {test[0].shape[1:]}"
        )
    return train, test


def _read_part(folder: Path, part: str) -> Arrays | None:
    images = _find(folder / f"{part}-images-idx3-ubyte")
    labels = _find(folder / f"{part}-labels-idx1-ubyte")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing, present = ("images-idx3", labels) if images is None else ("labels-idx1", images)
        raise DataError(f"Found {present} but no {part}-{missing}-ubyte beside it (nor with .gz)")
    arrays = read_idx(images, ndim=3), read_idx(labels, ndim=1)
    if len(arrays[0]) != len(arrays[1]):
        raise DataError(
            f"Expected as many labels as images; got {len(arrays[1])} in {labels} "
            f"and {len(arrays[0])} in {images}"
        )
    return arrays


def _find(path: Path) -> Path | None:
    gzipped = path.with_name(path.name + ".gz")
    return next((file for file in (path, gzipped) if file.is_file()), None)


def _fetch(name: str) -> tuple[Arrays, Arrays]:
    try:
        with warnings.catch_warnings(action="ignore"), _network_timeout(seconds=30.0):
            flat, labels = fetch_openml(
                OPENML_NAMES[name], version=1, return_X_y=True, as_frame=False
            )
    except (OSError, ValueError, HTTPException) as error:
        raise DataError(
            f"Cannot download {name} from openml.org ({error}); download its IDX files by hand "
            "and pass their folder with --data-dir"
        ) from error
    images = flat.reshape(-1, 28, 28).astype(np.uint8)
    labels = labels.astype(np.int64)
    return (images[:60_000], labels[:60_000]), (images[60_000:], labels[60_000:])


@contextmanager
def _network_timeout(*, seconds: float) -> Iterator[None]:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def _hold_out(images: np.ndarray, labels: np.ndarray, *, seed: int) -> tuple[Arrays, Arrays]:
    try:
        train_images, test_images, train_labels, test_labels = train_test_split(
            images, labels, test_size=HELD_OUT_FRACTION, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(
            f"Cannot hold out {HELD_OUT_FRACTION:.0%} of {len(images)} images: {error}"
        ) from error
    return (train_images, train_labels), (test_images, test_labels)


def _binarise(part: Arrays, rng: np.random.Generator) -> Arrays:
    images, labels = part
    return rng.random(images.shape, np.float32) < images / np.float32(255), labels


def _as_counts(train: Arrays, test: Arrays, *, levels: int) -> ImageData:
    def rows(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32)

    _, height, width = train[0].shape
    return ImageData(
        train_images=rows(train[0]),
        train_labels=train[1],
        test_images=rows(test[0]),
        test_labels=test[1],
        image_shape=(height, width),
        levels=levels,
    )

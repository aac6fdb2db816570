"""The demo's data: IDX files, folders, digits, and what it says of those it cannot use."""

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from sklearn.datasets import load_digits

from demo import data


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_part(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


@pytest.fixture
def scans() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (50, 5, 4), np.uint8), np.repeat(np.arange(10, dtype=np.uint8), 5)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_read_idx_returns_what_was_written(
    tmp_path: Path, scans: tuple[np.ndarray, np.ndarray], compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "images"
    path.write_bytes(compress(idx_bytes(scans[0])))
    np.testing.assert_array_equal(data.read_idx(path, ndim=3), scans[0])


GOOD = idx_bytes(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "Cannot read .*images: .*No such file"),
        (b"", "magic number 00000803.*got magic number nothing"),
        (b"\x89PNG and more", "3-dimensional unsigned bytes.*got magic number 89504e47"),
        (idx_bytes(np.zeros(9, np.uint8)), "got magic number 00000801"),
        (GOOD[:10], r"Expected .* bytes .*; got 10: the file is damaged"),
        (GOOD[:-1], r"Expected 76 bytes .*shape \(3, 4, 5\).*; got 75: the file is damaged"),
        (GOOD + b"\0", "Expected 76 bytes .*; got 77: the file is damaged"),
        (gzip.compress(GOOD)[:-9], "Cannot read .*images: Compressed file ended"),
        (gzip.compress(GOOD)[:12] + b"\xff" * 30, "Cannot read .*images: "),
    ],
    ids=[
        "missing",
        "empty",
        "picture",
        "labels",
        "no header",
        "too short",
        "too long",
        "cut archive",
        "damaged archive",
    ],
)
def test_read_idx_says_what_is_wrong(tmp_path: Path, content: bytes | None, match: str) -> None:
    path = tmp_path / "images"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(data.DataError, match=match):
        data.read_idx(path, ndim=3)


def test_digits_are_counts_as_they_stand() -> None:
    digits = data.load("digits", data_dir=None, seed=0)
    original, _ = load_digits(return_X_y=True)
    rows = np.concatenate([digits.train_images, digits.test_images])
    assert (len(digits.train_images), len(digits.test_images)) == (1437, 360)
    assert (digits.levels, digits.image_shape) == (16, (8, 8))
    assert sorted(map(tuple, rows)) == sorted(map(tuple, original))


def test_a_folder_with_both_parts_is_held_out_as_it_stands(
    tmp_path: Path, scans: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = scans
    write_part(tmp_path, "train", images, labels)
    write_part(tmp_path, "t10k", 255 * (images[:20] > 99).astype(np.uint8), labels[:20])
    loaded = data.load("mnist", data_dir=tmp_path, seed=0)
    assert (loaded.levels, loaded.image_shape) == (1, (5, 4))
    np.testing.assert_array_equal(loaded.train_labels, labels)
    np.testing.assert_array_equal(
        loaded.test_images.reshape(-1, 5, 4), images[:20] > 99, "certain pixels stay"
    )


def test_binarised_pixels_have_their_intensity_as_their_mean(tmp_path: Path) -> None:
    images = np.full((100, 30, 30), 51, np.uint8)
    write_part(tmp_path, "train", images, np.repeat(np.arange(10, dtype=np.uint8), 10))
    loaded = data.load("mnist", data_dir=tmp_path, seed=0)
    pixels = np.concatenate([loaded.train_images, loaded.test_images])
    assert set(np.unique(pixels)) == {0.0, 1.0}
    assert abs(pixels.mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / pixels.size)


def test_a_folder_with_one_part_is_split_alike_for_every_class(
    tmp_path: Path, scans: tuple[np.ndarray, np.ndarray]
) -> None:
    write_part(tmp_path, "t10k", *scans)
    loaded = data.load("fashion-mnist", data_dir=tmp_path, seed=0)
    assert np.bincount(loaded.train_labels).tolist() == [4] * 10
    assert np.bincount(loaded.test_labels).tolist() == [1] * 10


def test_load_says_what_a_folder_lacks(
    tmp_path: Path, scans: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = scans

    def load() -> None:
        data.load("mnist", data_dir=tmp_path, seed=0)

    with pytest.raises(data.DataError, match=r"no IDX files in .*train-images-idx3-ubyte.*\.gz"):
        load()
    write_part(tmp_path, "train", images, labels[:-1])
    with pytest.raises(data.DataError, match=r"as many labels as images; got 49 in .* and 50 in"):
        load()
    write_part(tmp_path, "train", images[::5], labels[::5])
    with pytest.raises(data.DataError, match=r"Cannot hold out 20% of 10 images"):
        load()
    write_part(tmp_path, "t10k", images[:, 1:], labels)
    with pytest.raises(data.DataError, match=r"of one size in .*; got \(5, 4\) and \(4, 4\)"):
        load()
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(data.DataError, match=r"t10k-labels.* but no t10k-images-idx3-ubyte"):
        load()


def test_a_failed_download_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(data, "fetch_openml", unreachable)
    with pytest.raises(data.DataError, match=r"download mnist .*no route to host.*--data-dir"):
        data.load("mnist", data_dir=None, seed=0)

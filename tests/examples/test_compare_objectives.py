"""The demo: data in, objectives trained, tables and figures out; and what it says to bad input."""

import csv
import gzip
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import compare_objectives
import numpy as np
import pytest
import torch
from compare_objectives import main
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits

from demo import data
from demo.evaluation import fit, same_noise
from demo.figures import PRIOR_MASSES, PRIOR_NOTE
from demo.pictures import principal_plane
from demo.training import minibatches, train
from demo.vae import VAE

SCRIPT = Path(compare_objectives.__file__)
FIGURES = ("code_space.png", "prior_samples.png", "manifold.png", "training_curves.png")


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


# ------------------------------------------------------------------------------------ evaluation


def test_fit_is_exact_where_everything_is_known() -> None:
    d, n, pixels, loc, scale = 2, 1500, 6, 1.5, 0.5
    vae = VAE(pixels=pixels, levels=1, latent_dim=d, hidden=4)
    for parameter in vae.parameters():
        torch.nn.init.zeros_(parameter)
    bias = vae.encoder[-1].bias
    with torch.no_grad():
        bias[:d], bias[d:] = loc, math.log(math.expm1(scale))

    def kernel_mean(distance: float, variance: float) -> float:
        """E k(a, b) for a - b ~ N(distance, variance), per feature, k an RBF of lengthscale √d."""
        spread = d + variance
        return (math.sqrt(d / spread) * math.exp(-(distance**2) / (2 * spread))) ** d

    found = fit(vae, torch.ones(n, pixels))

    assert found.reconstruction == pytest.approx(pixels * math.log(2))
    assert found.kl == pytest.approx(d * (0.5 * (loc**2 + scale**2 - 1) - math.log(scale)))
    mmd_squared = (
        kernel_mean(0, 2 * scale**2) + kernel_mean(0, 2) - 2 * kernel_mean(loc, 1 + scale**2)
    )
    assert found.mmd_squared == pytest.approx(mmd_squared, abs=0.02)
    assert mmd_squared > 0.2


def test_same_noise_repeats_itself_and_leaves_the_generator_alone() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        with same_noise(torch.device("cpu")):
            draws.append(torch.randn(3))
        after = torch.randn(3)
    torch.manual_seed(1)
    assert torch.equal(*draws)
    assert torch.equal(after, torch.randn(3))


def test_principal_plane_finds_the_two_wide_directions() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    z = torch.randn(1000, 4) * torch.tensor([9.0, 3.0, 0.1, 0.1]) @ rotation + 5.0
    plane = principal_plane(z)
    torch.testing.assert_close(plane.T @ plane, torch.eye(2))
    alignment = (rotation[:2] @ plane).abs()
    torch.testing.assert_close(alignment, torch.eye(2), atol=0.02, rtol=0)


def test_the_figures_say_which_share_of_the_prior_the_circles_hold() -> None:
    assert all(f"{mass:.0%}" in PRIOR_NOTE for mass in PRIOR_MASSES)


# -------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("size", "batch_size", "batches"), [(10, 3, 4), (9, 3, 3), (2, 5, 1)])
def test_minibatches_hold_every_row_once_and_none_is_short(
    size: int, batch_size: int, batches: int
) -> None:
    parts = minibatches(size, batch_size, generator=torch.Generator())
    assert len(parts) == batches
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(torch.cat(parts).tolist()) == list(range(size))


def test_training_repeats_itself_and_lowers_the_loss() -> None:
    images = torch.bernoulli(torch.rand(64, 1).expand(64, 12))
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        vae = VAE(pixels=12, levels=1, hidden=8)
        epochs = train(vae, TraceMeanField_ELBO(), images, epochs=20, batch_size=16)
        losses.append([epoch.loss for epoch in epochs])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


# ------------------------------------------------------------------------------------------ data


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
    rows = torch.cat([digits.train_images, digits.test_images]).numpy()
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
        loaded.test_images.numpy().reshape(-1, 5, 4), images[:20] > 99, "certain pixels stay"
    )


def test_binarised_pixels_have_their_intensity_as_their_mean(tmp_path: Path) -> None:
    images = np.full((100, 30, 30), 51, np.uint8)
    write_part(tmp_path, "train", images, np.repeat(np.arange(10, dtype=np.uint8), 10))
    loaded = data.load("mnist", data_dir=tmp_path, seed=0)
    pixels = torch.cat([loaded.train_images, loaded.test_images])
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    assert abs(pixels.mean().item() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / pixels.numel())


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


# ---------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--objectives", "elbow"], r"invalid choice: 'elbow' \(choose from '?elbo'?, '?mmd'?"),
        (["--data", "cifar"], "invalid choice: 'cifar'"),
        (["--epochs", "0"], "argument --epochs: Expected an integer of at least 1; got '0'"),
        (["--latent-dim", "1"], "--latent-dim: Expected an integer of at least 2; got '1'"),
        (["--seed", "one"], "argument --seed: Expected an integer of at least 0; got 'one'"),
        (["--device", "abacus"], "--device: Expected a device .*; got 'abacus'"),
        (["--data", "mnist", "--data-dir", "nowhere"], "Found no IDX files in nowhere; looked for"),
        (["--data-dir", "folder"], "--data-dir is for --data mnist or fashion-mnist"),
        (["--out", __file__], "error: .*File exists: "),
    ],
)
def test_bad_input_gives_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cuda"])
    assert capsys.readouterr().err.endswith(
        "argument --device: Expected a device that this build of PyTorch can use; got 'cuda'\n"
    )


def test_the_script_runs_from_the_root(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(b"damaged")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"too")
    run = subprocess.run(
        [sys.executable, SCRIPT, "--data=mnist", f"--data-dir={tmp_path}", f"--out={tmp_path}"],
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("compare_objectives.py: error: Expected an IDX file")
    assert len(run.stderr.splitlines()) == 1


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_short_run_writes_every_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("demo.evaluation.IMPORTANCE_SAMPLES", 20)
    out = tmp_path / "new" / "folder"
    assert main(["--epochs", "2", "--out", str(out)]) == 0

    table, curves = rows(out / "table.csv"), rows(out / "curves.csv")
    assert ",".join(table[0]) == (
        "objective,loss,reconstruction,log_prob,unreliable,kl,mmd_squared,knn_accuracy,"
        "seconds_per_epoch"
    )
    assert ",".join(curves[0]) == "objective,epoch,training_loss,reconstruction,kl,mmd_squared"
    names = list(compare_objectives.OBJECTIVES)
    assert [row["objective"] for row in table] == names
    assert [(row["objective"], row["epoch"]) for row in curves] == [
        (name, epoch) for name in names for epoch in "12"
    ]
    for row in table + curves:
        numbers = [float(value) for column, value in row.items() if column != "objective"]
        assert all(map(math.isfinite, numbers))
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_the_loss_of_the_elbo_is_its_two_terms_and_bounds_the_evidence(tmp_path: Path) -> None:
    argv = ["--epochs=1", "--latent-dim=3", "--objectives", "elbo", "elbo", f"--out={tmp_path}"]
    assert main(argv) == 0
    (row,) = rows(tmp_path / "table.csv")
    loss, terms = float(row["loss"]), float(row["reconstruction"]) + float(row["kl"])
    assert loss == pytest.approx(terms, rel=0.02)
    assert -float(row["log_prob"]) < loss


def test_an_interrupt_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(setting: compare_objectives.Setting) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(compare_objectives.OBJECTIVES, "interrupted", interrupted)
    argv = ["--epochs=1", "--objectives", "elbo", "interrupted", f"--out={tmp_path}"]
    assert main(argv) == 130
    assert [row["objective"] for row in rows(tmp_path / "table.csv")] == ["elbo"]
    assert all((tmp_path / name).is_file() for name in FIGURES)
    assert "finished trainings are kept (1)" in capsys.readouterr().out

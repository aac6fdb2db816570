"""The demo: data in, objectives trained, tables and figures out; and what it says to bad input."""

import csv
import gzip
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import compare_objectives
import numpy as np
import pytest
import torch
from compare_objectives import OBJECTIVES, main
from sklearn.datasets import load_digits

from demo import backend, data
from demo.backend import Setting
from demo.evaluation import binomial_log_prob, evaluate, fit
from demo.figures import PRIOR_MASSES, PRIOR_NOTE
from demo.pictures import draw_pixels, principal_plane
from demo.training import minibatches
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

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


class Known:
    """A training of which everything is known: q(z|x) = N(1.5, 0.5²), and pixels that are fair."""

    loc, scale = 1.5, 0.5

    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(images), 2)
        return np.full(shape, self.loc, np.float32), np.full(shape, self.scale, np.float32)

    def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
        return np.zeros_like(images)

    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        return mmd_squared(torch.as_tensor(x), torch.as_tensor(y), RBF()).item()


def test_fit_is_exact_where_everything_is_known() -> None:
    d, pixels, loc, scale = 2, 6, Known.loc, Known.scale

    def kernel_mean(distance: float, variance: float) -> float:
        """E k(a, b) for a - b ~ N(distance, variance), per feature, k an RBF of lengthscale √d."""
        spread = d + variance
        return (math.sqrt(d / spread) * math.exp(-(distance**2) / (2 * spread))) ** d

    found = fit(Known(), np.ones((1500, pixels), np.float32), levels=1)

    assert found.reconstruction == pytest.approx(pixels * math.log(2))
    assert found.kl == pytest.approx(d * (0.5 * (loc**2 + scale**2 - 1) - math.log(scale)))
    expected = kernel_mean(0, 2 * scale**2) + kernel_mean(0, 2) - 2 * kernel_mean(loc, 1 + scale**2)
    assert found.mmd_squared == pytest.approx(expected, abs=0.02)
    assert expected > 0.2


def test_binomial_log_prob_is_torchs() -> None:
    rng = np.random.default_rng(0)
    counts, logits = rng.integers(0, 17, (5, 3)), rng.normal(scale=3.0, size=(5, 3))
    binomial = torch.distributions.Binomial(16, logits=torch.as_tensor(logits))
    expected = binomial.log_prob(torch.as_tensor(counts).double()).sum(-1)
    np.testing.assert_allclose(binomial_log_prob(counts, logits, levels=16), expected)


def test_principal_plane_finds_the_two_wide_directions() -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    z = rng.normal(size=(1000, 4)) * [9.0, 3.0, 0.1, 0.1] @ rotation + 5.0
    plane = principal_plane(z)
    np.testing.assert_allclose(plane.T @ plane, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.abs(rotation[:2] @ plane), np.eye(2), atol=0.02)


def test_pixels_are_drawn_one_after_the_other() -> None:
    class Copies:
        """The first pixel is inked where the code is positive, the others as the one before."""

        def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
            before = np.concatenate([z > 0, images[:, :-1]], axis=1)
            return np.where(before > 0, 100.0, -100.0)

    images = draw_pixels(Copies(), np.array([[1.0], [-1.0]]), pixels=5)
    np.testing.assert_array_equal(images, [[1] * 5, [0] * 5])


def test_the_figures_say_which_share_of_the_prior_the_circles_hold() -> None:
    assert all(f"{mass:.0%}" in PRIOR_NOTE for mass in PRIOR_MASSES)


# -------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("size", "batch_size", "batches"), [(10, 3, 4), (9, 3, 3), (2, 5, 1)])
def test_minibatches_hold_every_row_once_and_none_is_short(
    size: int, batch_size: int, batches: int
) -> None:
    parts = minibatches(size, batch_size, np.random.default_rng(0))
    assert len(parts) == batches
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(np.concatenate(parts)) == list(range(size))


SETTING = Setting(
    pixels=12,
    levels=1,
    latent_dim=2,
    autoregressive=False,
    learning_rate=1e-2,
    seed=0,
    device=None,
)
IMAGES = np.repeat(np.random.default_rng(0).random((64, 1)) > 0.5, 12, axis=1).astype(np.float32)


@pytest.mark.parametrize("name", backend.NAMES)
def test_training_repeats_itself_and_lowers_the_loss(name: str) -> None:
    half = backend.load(name)
    losses = []
    for _ in range(2):
        training = half.start(half.TraceMeanField_ELBO, IMAGES, SETTING)
        order = np.random.default_rng(0)
        losses.append([training.epoch(minibatches(64, 16, order)) for _ in range(20)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize("name", backend.NAMES)
def test_an_autoregressive_pixel_is_predicted_from_those_before_it_and_the_code(name: str) -> None:
    half = backend.load(name)
    setting = replace(SETTING, autoregressive=True)
    training = half.start(half.TraceMeanField_ELBO, IMAGES, setting)
    z = np.ones((1, 2), np.float32)
    image = np.full((1, 12), 0.5, np.float32)
    logits = training.logits(z, image)
    for pixel in range(12):
        inked = image.copy()
        inked[0, pixel] = 1.0
        changed = (training.logits(z, inked) != logits)[0]
        assert not changed[: pixel + 1].any()
        assert changed[pixel + 1 :].all()
    # What the first pixel's last layer sees of the hidden units is nothing.
    assert (training.logits(-z, image) != logits)[0].tolist() == [False] + [True] * 11
    images = np.array(list(itertools.product([0.0, 1.0], repeat=12)), np.float32)
    logits = training.logits(np.repeat(z, len(images), 0), images)
    assert np.exp(binomial_log_prob(images, logits, levels=1)).sum() == pytest.approx(1, rel=1e-4)


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


# ---------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--objectives", "elbow"], r"invalid choice: 'elbow' \(choose from '?elbo'?, '?mmd'?"),
        (["--data", "cifar"], "invalid choice: 'cifar'"),
        (["--epochs", "0"], "argument --epochs: Expected an integer of at least 1; got '0'"),
        (["--latent-dim", "1"], "--latent-dim: Expected an integer of at least 2; got '1'"),
        (["--seed", "one"], "argument --seed: Expected an integer of at least 0; got 'one'"),
        (["--device", "abacus"], "error: Expected a device .*; got 'abacus'"),
        (["--backend", "numpyro", "--device", "cpu"], "Expected no --device with .*JAX_PLATFORMS"),
        (["--seeds", "0"], "argument --seeds: Expected an integer of at least 1; got '0'"),
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
def test_cuda_without_cuda_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cuda", f"--out={tmp_path}"])
    assert capsys.readouterr().err.endswith(
        "error: Expected a device that this build of PyTorch can use; got 'cuda'\n"
    )


def test_a_backend_that_is_not_installed_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "demo.with_numpyro", raising=False)
    monkeypatch.setitem(sys.modules, "numpyro.infer", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "numpyro"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("numpyro needs numpyro: pip install 'pyro-infovae[demo,numpyro]'")


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


class Sources(HTMLParser):
    """What a page loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]


@pytest.mark.parametrize(
    ("name", "names"),
    # The others take their time to compile.
    [("pyro", list(OBJECTIVES)), ("numpyro", ["elbo", "infomax", "mmd+hamiltonian"])],
)
def test_a_short_run_writes_every_table_and_figure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    names: list[str],
) -> None:
    monkeypatch.setattr("demo.evaluation.IMPORTANCE_SAMPLES", 20)
    out = tmp_path / "new" / "folder"
    argv = ["--backend", name, "--epochs", "2", "--out", str(out)]
    assert main([*argv, "--objectives", *names]) == 0

    table, curves = rows(out / "table.csv"), rows(out / "curves.csv")
    assert ",".join(table[0]) == (
        "objective,seed,loss,reconstruction,log_prob,unreliable,kl,mmd_squared,active_units,"
        "information,knn_accuracy,seconds_per_epoch"
    )
    assert ",".join(curves[0]) == "objective,seed,epoch,training_loss,reconstruction,kl,mmd_squared"
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
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(Sources(page).found) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in Sources(page).found)
    assert not re.search(r"url\(|@import|<script|https?://", page)
    assert all(f"<th>{name}</th>" in page for name in names)


def test_the_loss_of_the_elbo_is_its_two_terms_and_bounds_the_evidence(tmp_path: Path) -> None:
    argv = ["--epochs=1", "--latent-dim=3", "--objectives", "elbo", "elbo", f"--out={tmp_path}"]
    assert main(argv) == 0
    (row,) = rows(tmp_path / "table.csv")
    loss, terms = float(row["loss"]), float(row["reconstruction"]) + float(row["kl"])
    assert loss == pytest.approx(terms, rel=0.02)
    assert -float(row["log_prob"]) < loss


def test_seeds_are_trained_in_turn_and_the_table_shows_their_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--epochs=1", "--objectives", "elbo", "mmd", "--seed=3", "--seeds=2", "--collapse"]
    assert main([*argv, f"--out={tmp_path}"]) == 0
    table = rows(tmp_path / "table.csv")
    assert [(row["objective"], row["seed"]) for row in table] == [
        ("elbo", "3"),
        ("mmd", "3"),
        ("elbo", "4"),
        ("mmd", "4"),
    ]
    losses = [float(row["loss"]) for row in table if row["objective"] == "elbo"]
    assert losses[0] != losses[1]
    spread = f"{np.mean(losses):.2f} ± {np.std(losses, ddof=1):.2f}"
    assert spread in capsys.readouterr().out
    assert spread in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_second_run_repeats_no_finished_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--epochs=1", "--objectives", "elbo", f"--out={tmp_path}"]
    assert main(argv) == 0
    first = (tmp_path / "table.csv").read_text(), (tmp_path / "curves.csv").read_text()
    figures = [(tmp_path / name).read_bytes() for name in FIGURES]

    trained: list[str] = []
    elbo = OBJECTIVES["elbo"]
    monkeypatch.setitem(OBJECTIVES, "elbo", lambda b, s: trained.append("elbo") or elbo(b, s))
    assert main(argv) == 0
    assert trained == []
    assert ((tmp_path / "table.csv").read_text(), (tmp_path / "curves.csv").read_text()) == first
    assert [(tmp_path / name).read_bytes() for name in FIGURES] == figures

    assert main(["--latent-dim=3", *argv]) == 0
    assert trained == ["elbo"]
    (kept,) = (tmp_path / "trainings").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert main(["--latent-dim=3", *argv]) == 0
    assert trained == ["elbo", "elbo"]


def test_an_interrupt_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(half: backend.Backend, setting: Setting) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(OBJECTIVES, "interrupted", interrupted)
    argv = ["--epochs=1", "--objectives", "elbo", "interrupted", f"--out={tmp_path}"]
    assert main(argv) == 130
    assert [row["objective"] for row in rows(tmp_path / "table.csv")] == ["elbo"]
    assert all((tmp_path / name).is_file() for name in (*FIGURES, "report.html"))
    assert "finished trainings are kept (1)" in capsys.readouterr().out


def test_active_units_and_information_are_measured() -> None:
    """Codes that tell 8 images apart, in one dimension of two."""

    class Coded(Known):
        def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            loc = np.stack([images.sum(1), np.ones(len(images))], 1).astype(np.float32)
            return loc, np.full_like(loc, 1e-3)

        def loss(self, images: np.ndarray) -> float:
            return 2.0 * len(images)

        def information(self, images: np.ndarray) -> float:
            return math.log(len(images))

        def log_evidence(self, images: np.ndarray, *, num_samples: int) -> SimpleNamespace:
            return SimpleNamespace(log_evidence=-images.sum(1), pareto_k=np.arange(8) / 8)

    images = np.tril(np.ones((8, 8), np.float32))
    labels = np.arange(8)
    scores = evaluate(Coded(), data.ImageData(images, labels, images, labels, (4, 2), levels=1))
    assert scores.active_units == 1
    assert scores.loss == 2.0
    assert scores.log_prob == -4.5
    assert scores.unreliable == 2 / 8
    assert scores.information == math.log(8)

"""The reproduction of InfoVAE: its quadratures against closed forms, and a run cut short."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import infovae
import numpy as np
import pytest

from info_vaes.images import minibatches
from infovae_parts import two_points
from infovae_parts.measuring import log_det
from infovae_parts.two_points import Snapshot
from tests.examples.reproductions.conftest import Check

SLOPE, OFFSET, NOISE = 1.5, 0.2, 0.4


def linear(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return SLOPE * z + OFFSET, np.full_like(z, NOISE)


def normal_kl(loc: float, scale: float, other_loc: float, other_scale: float) -> float:
    ratio = scale / other_scale
    return 0.5 * (ratio**2 + ((loc - other_loc) / other_scale) ** 2 - 1) - math.log(ratio)


@pytest.mark.parametrize("x", [-1.0, 2.5])
def test_the_evidence_is_exact(x: float) -> None:
    variance = SLOPE**2 + NOISE**2
    expected = -0.5 * ((x - OFFSET) ** 2 / variance + math.log(2 * math.pi * variance))
    assert two_points.log_evidence(x, linear) == pytest.approx(expected, abs=1e-9)


def test_the_gap_is_the_kl_from_the_true_posterior() -> None:
    loc, scale = np.array([-0.3, 1.1]), np.array([0.2, 0.7])
    precision = 1 + (SLOPE / NOISE) ** 2
    expected = [
        normal_kl(loc[i], scale[i], SLOPE * (x - OFFSET) / NOISE**2 / precision, precision**-0.5)
        for i, x in enumerate((-1.0, 1.0))
    ]
    found = two_points.measures(Snapshot(0, loc, scale, linear))
    assert found["gap"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["gap"] > 1


def test_the_marginal_kl_of_one_normal_is_in_closed_form() -> None:
    found = two_points.marginal_kl(np.array([0.7, 0.7]), np.array([0.3, 0.3]))
    assert found == pytest.approx(normal_kl(0.7, 0.3, 0.0, 1.0), abs=1e-8)


def test_normals_far_apart_share_a_marginal_kl_less_log_2() -> None:
    """What tells them apart is one bit of mutual information."""
    found = two_points.marginal_kl(np.array([-3.0, 3.0]), np.array([0.1, 0.2]))
    kl = (normal_kl(-3.0, 0.1, 0.0, 1.0) + normal_kl(3.0, 0.2, 0.0, 1.0)) / 2
    assert found == pytest.approx(kl - math.log(2), abs=1e-8)


def test_log_det_is_that_of_draws() -> None:
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(5, 3)) * [3, 1, 0.2], rng.uniform(0.1, 1.0, (5, 3))
    draws = loc + scale * rng.normal(size=(200_000, 5, 3))
    expected = np.linalg.slogdet(np.cov(draws.reshape(-1, 3).T))[1]
    assert log_det(loc, scale) == pytest.approx(expected, abs=0.02)


def test_minibatches_are_alike_in_size_and_hold_no_image_twice_in_an_epoch() -> None:
    batches = minibatches(250, 5, np.random.default_rng(0))
    assert [len(rows) for rows in batches] == [100] * 5
    assert all(len(np.unique(np.concatenate(batches[i : i + 2]))) == 200 for i in (0, 2))
    assert [len(rows) for rows in minibatches(30, 2, np.random.default_rng(0))] == [30, 30]


@pytest.mark.slow
def test_mmd_holds_the_codes_of_two_points_to_the_prior() -> None:
    """The ELBO has no such term: its codes are further from the prior after as many steps."""
    kl = {}
    for objective in two_points.OBJECTIVES:
        first, last = two_points.train(
            objective, steps=(0, 300), seed=0, backend="pyro", device="cpu"
        )
        np.testing.assert_allclose(first.loc, [-0.5, 0.5], rtol=1e-6)
        np.testing.assert_allclose(first.scale, 0.5, rtol=1e-6)
        kl[objective] = two_points.measures(last)["marginal_kl"]
    assert kl["mmd"] < 0.06 < 0.12 < kl["elbo"]


def idx_folder(folder: Path) -> Path:
    """250 images of stripes, as MNIST's files have them."""
    labels = np.arange(250, dtype=np.uint8) % 10
    images = np.random.default_rng(0).integers(0, 56, (250, 8, 8), np.uint8)
    images[np.arange(250), labels % 8] += 200
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        path = folder / f"train-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + array.tobytes()))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "images"), [("pyro", idx_folder), ("numpyro", None)])
def test_check(
    check: Check, tmp_path: Path, backend: str, images: Callable[[Path], Path] | None
) -> None:
    data = [] if images is None else ["--data-dir", str(images(tmp_path))]
    tables = check(infovae, backend, *data)
    points, sizes = tables["two_points"], tables["sizes"]
    assert points[["objective", "step"]].to_numpy().tolist() == [
        [objective, step] for objective in ("elbo", "mmd") for step in (0, 20)
    ]
    assert (points.gap > 0).all()
    assert (points[points.step == 20].elbo.to_numpy() > points[points.step == 0].elbo.max()).all()
    assert sizes.objective.tolist() == ["elbo", "mmd"]
    assert (sizes.log_prob < 0).all()
    codes = tables["codes"].set_index("objective")
    assert codes.index.tolist() == ["mmd, deterministic"]
    # Without a spread of its own, and hardly trained, the code fills little of the plane.
    assert (codes.log_det < -1).all()


def test_it_says_which_images_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infovae.main(["--full", "--out", str(tmp_path)]) == 2
    assert "--full needs --data-dir" in capsys.readouterr().err
    few = ["--quick", "--data-dir", str(idx_folder(tmp_path)), "--out", str(tmp_path / "out")]
    assert infovae.main(few) == 2
    assert "Expected at least 1400 training images; got 200" in capsys.readouterr().err

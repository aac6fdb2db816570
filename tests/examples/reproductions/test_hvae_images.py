"""HVAE on images: data, networks and scores, and the reproduction cut short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.examples.reproductions.conftest import BACKENDS, Check

hvae_images = pytest.importorskip("hvae_images")
from hvae_images_parts import networks_numpyro, networks_pyro  # noqa: E402
from hvae_images_parts.data import DataError, load  # noqa: E402
from hvae_images_parts.measure import checkpoints, nll, scores  # noqa: E402
from hvae_images_parts.methods import Snapshot  # noqa: E402


def write_scans(path: Path, images: np.ndarray) -> None:
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    path.write_bytes(header + images.astype(np.uint8).tobytes())


def test_scans_are_pooled_and_the_test_images_binarised(tmp_path: Path) -> None:
    block = np.array([[0, 255], [0, 255]])
    scans = np.tile(np.kron(np.eye(2), block), (10, 2, 2))
    write_scans(tmp_path / "t10k-images-idx3-ubyte", scans)
    images = load(tmp_path, pooled=2, num_test=1)
    assert (images.train.shape, images.test.shape, images.side) == ((8, 16), (1, 16), 4)
    np.testing.assert_allclose(images.train[0, :5], [0.5, 0.0, 0.5, 0.0, 0.0])
    assert set(np.unique(images.test)) <= {0.0, 1.0}
    write_scans(tmp_path / "train-images-idx3-ubyte", scans[:3])
    both = load(tmp_path, pooled=1, num_test=99)
    assert (len(both.train), len(both.test)) == (3, 10)
    np.testing.assert_array_equal(both.test, scans.reshape(10, -1) / 255, "certain pixels stay")


def test_the_digits_need_no_folder() -> None:
    images = load(None, pooled=4, num_test=50)
    assert (images.train.shape, images.test.shape) == ((1437, 64), (50, 64))
    assert (images.train.min(), images.train.max()) == (0, 1)


def test_a_folder_without_scans_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"no IDX files in .*t10k-images-idx3-ubyte.*\.gz"):
        load(tmp_path, pooled=1, num_test=1)
    assert hvae_images.main(["--check", "--data-dir", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("net", [hvae_images.CONVOLUTIONAL, hvae_images.DENSE])
def test_both_backends_have_the_networks_of_the_paper(net: hvae_images.Net) -> None:
    """Weights carried over from PyTorch give the same outputs in JAX."""
    encoder, decoder = networks_pyro.encoder(28, net), networks_pyro.decoder(28, net)
    images = torch.bernoulli(torch.full((3, 784), 0.3))
    ours = networks_numpyro.Encoder(28, net).apply(carry_over(encoder), images.numpy())
    np.testing.assert_allclose(ours, encoder(images).detach(), atol=1e-5)
    z = torch.randn(3, net.latent_dim)
    logits = networks_numpyro.Decoder(28, net).apply(carry_over(decoder), z.numpy())
    np.testing.assert_allclose(logits, decoder(z).detach(), atol=1e-5)


def carry_over(layers: torch.nn.Sequential) -> list[dict[str, np.ndarray]]:
    """Weights as JAX has them: maps last, and features in the order (height, width, maps)."""
    params: list[dict[str, np.ndarray]] = []
    maps = 1
    for i, layer in enumerate(layers):
        if not hasattr(layer, "weight"):
            continue
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        if isinstance(layer, torch.nn.Conv2d):
            weight, maps = weight.transpose(2, 3, 1, 0), len(bias)
        elif isinstance(layer, torch.nn.ConvTranspose2d):
            weight = weight.transpose(2, 3, 0, 1)[::-1, ::-1]
        else:
            weight = weight.T
            if i > 0 and isinstance(layers[i - 1], torch.nn.Flatten):
                weight = maps_last(weight.T, maps).T
            if i + 1 < len(layers) and isinstance(layers[i + 1], torch.nn.Unflatten):
                inner = layers[i + 1].unflattened_size[0]
                weight, bias = maps_last(weight, inner), maps_last(bias, inner)
        params.append({"kernel": weight, "bias": bias})
    return params


def maps_last(array: np.ndarray, maps: int) -> np.ndarray:
    """Reorder the last axis from (maps, pixels) to (pixels, maps)."""
    split = array.reshape(*array.shape[:-1], maps, -1)
    return np.moveaxis(split, -2, -1).reshape(array.shape)


def test_scores_are_of_the_mean_weight() -> None:
    encoder = np.log([[1.0, 2.0], [3.0, 2.0]])
    assert nll(encoder) == pytest.approx(-np.log(2))
    found = scores(Snapshot(1, own=np.log([[1.0, 1.0], [1.0, 1.0]]), encoder=encoder))
    assert (found["nll"], found["nll_own"]) == pytest.approx((-np.log(2), 0))
    assert (found["bound"], found["gap"]) == pytest.approx((0, np.log(2)))


def test_budgets_are_equal_in_gradients() -> None:
    names = ("VAE", "HVAE K=5, none", "HVAE K=5, free", "HVAE K=10, free")
    assert checkpoints("HVAE K=5, free", names, 132) == (22,)
    assert checkpoints("VAE", names, 132) == (12, 22, 132)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_check(check: Check, backend: str) -> None:
    table = check(hvae_images, backend)["table"]
    assert list(table["method"].unique()) == list(hvae_images.CHECKED)
    assert (table["bound"] > table["nll_own"]).all()
    vae = table[table["method"] == "VAE"].set_index("steps")["nll"]
    assert vae[132] < vae[22]
    flows = table[table["method"] != "VAE"]
    assert (flows["gradients"] == 132).all()
    assert (flows["step_size"] != 0.2).all()

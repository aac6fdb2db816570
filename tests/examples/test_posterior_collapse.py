"""The posterior collapse example: a short run, its decoder and its options."""

import csv
import math
from pathlib import Path

import posterior_collapse
import pyro
import pytest
import torch
from autoregressive import AutoregressiveVAE, Decoder
from posterior_collapse import main, measure

from demo.data import ImageData


def test_a_short_run_writes_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    argv = ["--epochs=1", "--seeds=1", "--alphas", "2", f"--out={out}", "--quiet"]
    assert main(argv) == 0
    with (out / "posterior_collapse.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["objective"] for row in rows] == ["ELBO", "InfoMax α=2"]
    assert all(math.isfinite(float(v)) for row in rows for k, v in row.items() if k != "objective")
    assert (out / "posterior_collapse.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(row["objective"] in printed for row in rows)
    assert "seeds: 1" in printed


def test_a_pixel_is_predicted_from_the_pixels_before_it_and_the_code() -> None:
    decoder = Decoder(pixels=16, latent_dim=3, hidden=64)
    images, z = torch.rand(16, requires_grad=True), torch.randn(3, requires_grad=True)
    for pixel, logit in enumerate(decoder(images, z)):
        to_images, to_code = torch.autograd.grad(
            logit, (images, z), retain_graph=True, allow_unused=True
        )
        assert (to_images[:pixel] != 0).all()
        assert (to_images[pixel:] == 0).all()
        # What the first pixel's last layer sees of the hidden units is nothing.
        assert bool(to_code.any()) == (pixel > 0)


def test_the_likelihood_is_a_probability_of_images() -> None:
    vae = AutoregressiveVAE(pixels=6, latent_dim=2)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    log_probs = vae.likelihood(images, torch.randn(2).expand(len(images), -1)).log_prob(images)
    assert log_probs.exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(("scale", "active"), [(0.0, 0), (100.0, 8)])
def test_a_code_is_active_where_its_mean_varies(scale: float, active: int) -> None:
    pyro.set_rng_seed(0)
    vae = AutoregressiveVAE(pixels=64, latent_dim=8)
    with torch.no_grad():
        vae.encoder[-1].weight[:8].mul_(scale)
        vae.encoder[-1].weight[8:].zero_()
        vae.encoder[-1].bias[8:].fill_(-2.0)
    labels = torch.arange(100) % 10
    images = (torch.rand(10, 64) < 0.5).to(torch.get_default_dtype())[labels]
    data = ImageData(images, labels.numpy(), images, labels.numpy(), (8, 8), levels=1)
    measured = measure(vae, data)
    assert measured["active_units"] == active
    assert measured["information"] == pytest.approx(math.log(10) if active else 0.0, abs=0.01)
    assert (measured["knn"] > 90) == (measured["linear"] > 90) == (active > 0)
    assert measured["kl"] > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds=0"], "argument --seeds: Expected an integer of at least 1; got '0'"),
        (["--alphas", "-1"], "argument --alphas: Expected a number of at least 0; got '-1'"),
        (["--alphas", "much"], "argument --alphas: Expected a number of at least 0; got 'much'"),
        (["--out=/dev/null/here"], "Cannot write to /dev/null/here: Not a directory"),
    ],
)
def test_bad_options_give_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(message)


def test_the_objectives_are_the_stock_one_and_ours() -> None:
    assert posterior_collapse.objective(None, 64).__class__.__module__.startswith("pyro.infer")
    assert posterior_collapse.objective(2.0, 64).alpha == 2.0

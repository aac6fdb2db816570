"""The reproduction of InfoMax-VAE: what it measures, and a run cut short."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import infomax_vae
import numpy as np
import pandas as pd
import pytest
import torch

from demo.backend import Setting
from infomax_parts import backends
from infomax_parts.measuring import linear_accuracy
from infomax_parts.page import smallest_as_good_as_best, text


class DensityRatio(torch.nn.Module):
    """log p(x, z) / (p(x) p(z)) where x and z are normal with a correlation."""

    correlation = 0.8

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        r, x, z = self.correlation, x[:, 0], z[:, 0]
        square = (r * x) ** 2 + (r * z) ** 2 - 2 * r * x * z
        return -0.5 * math.log(1 - r**2) - square / (2 * (1 - r**2))


def correlated_rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 1000, 1), np.float32)
    r = DensityRatio.correlation
    return x, (r * x + math.sqrt(1 - r**2) * noise).astype(np.float32)


def test_the_best_critics_bound_is_the_mutual_information() -> None:
    objective = SimpleNamespace(critic=DensityRatio())
    training: Any = SimpleNamespace(device="cpu", objective=objective)
    found = backends.load("pyro").critic_bound(training, *correlated_rows())
    expected = -0.5 * math.log(1 - DensityRatio.correlation**2)
    assert found == pytest.approx(expected, abs=0.1)


SETTING = Setting(
    pixels=12,
    levels=1,
    latent_dim=3,
    autoregressive=False,
    learning_rate=1e-2,
    seed=0,
    device=None,
)
IMAGES = np.repeat(np.random.default_rng(0).random((100, 1)) > 0.5, 12, axis=1).astype(np.float32)


def test_the_weight_makes_the_code_tell_the_images_apart() -> None:
    """Two images, equally often: no code knows more than log 2 of them."""
    half = backends.load("pyro")
    training = half.start(IMAGES, SETTING, alpha=4.0)
    assert half.critic_bound(training, IMAGES, training.posterior(IMAGES)[0]) < 0.1
    training.epoch([np.arange(100)] * 200)
    bound = half.critic_bound(training, IMAGES, training.posterior(IMAGES)[0])
    assert 0.5 < bound < math.log(2) + 0.15
    assert 1 <= half.active_units(training, IMAGES) <= 3


def test_linear_accuracy_needs_means_that_vary() -> None:
    labels = np.arange(600) % 3
    means = np.eye(3)[labels] + 0.1 * np.random.default_rng(0).standard_normal((600, 3))
    halves = [(means[part], labels[part]) for part in (slice(300), slice(300, 600))]
    assert linear_accuracy(*halves) > 0.99
    faint = [(1e-4 * half, label) for half, label in halves]
    assert linear_accuracy(*faint) < 0.7


def table(accuracy: list[float], log_prob: list[float]) -> pd.DataFrame:
    columns = {"information": accuracy, "active_units": accuracy, "accuracy": accuracy}
    frame = pd.DataFrame({"alpha": [0.0, 1.0, 4.0], **columns, "log_prob": log_prob})
    for column in (*columns, "log_prob"):
        frame[f"{column}_sd"] = 0.01
    return frame.assign(seeds=3, unreliable=0.25)


def test_the_page_says_where_more_stops_helping() -> None:
    frame = table([0.5, 0.8, 0.801], [-20.0, -20.0, -25.0])
    best = smallest_as_good_as_best(frame.set_index("alpha", drop=False), "accuracy")
    assert best.alpha == 1.0
    found = text("MLP decoder", frame)
    assert "The linear accuracy is highest at α = 4 (80.1% ± 1.0%); α = 1 (80.0% ± 1.0%)" in found
    assert "log p(x), -20.00 ± 0.01, is, within the spread, as under the ELBO" in found
    assert "At α = 4 log p(x) is -25.00 ± 0.01, below the ELBO's" in found
    assert "any smaller α gives less" in text("it", table([0.5, 0.6, 0.9], [-20.0] * 3))
    assert "No α raises the linear accuracy" in text("it", table([0.5] * 3, [-20.0] * 3))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_it_writes_its_page(tmp_path: Path, backend: str) -> None:
    argv = ["--check", "--jobs", "1", "--backend", backend, "--out", str(tmp_path)]
    assert infomax_vae.main(argv) == 0
    found = pd.read_csv(tmp_path / "alphas.csv")
    assert found[["decoder", "alpha"]].to_numpy().tolist() == [
        ["autoregressive", alpha] for alpha in (0.0, 4.0)
    ]
    measured = found.select_dtypes("number").filter(regex="(?<!_sd)$")
    assert np.isfinite(measured.to_numpy()).all()
    assert (found.log_prob < 0).all()
    assert found.accuracy.between(0, 1).all()
    # The KL splits into the information and what q(z) is off, which is not negative.
    assert (found.information < found.kl + 0.05).all()
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "With the autoregressive decoder, under the ELBO" in page
    assert (tmp_path / "alphas.png").stat().st_size > 5000


def test_it_says_which_images_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infomax_vae.main(["--full", "--out", str(tmp_path)]) == 2
    assert "--full needs --data-dir" in capsys.readouterr().err

"""The reproduction of InfoMax-VAE: what it measures, and a run cut short."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import infomax_vae
import numpy as np
import pytest
import torch

from demo.backend import Setting
from demo.evaluation import active_units
from infomax_parts.critic_pyro import critic_bound
from infomax_parts.measuring import linear_accuracy, start
from tests.examples.reproductions.conftest import BACKENDS, Check


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
    found = critic_bound(training, *correlated_rows())
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
    compiled=True,
)
IMAGES = np.repeat(np.random.default_rng(0).random((100, 1)) > 0.5, 12, axis=1).astype(np.float32)


def test_the_weight_makes_the_code_tell_the_images_apart() -> None:
    """Two images, equally often: no code knows more than log 2 of them."""
    training = start("pyro", IMAGES, SETTING, alpha=4.0)
    assert critic_bound(training, IMAGES, training.posterior(IMAGES)[0]) < 0.1
    training.epoch([np.arange(100)] * 200)
    bound = critic_bound(training, IMAGES, training.posterior(IMAGES)[0])
    assert 0.5 < bound < math.log(2) + 0.15
    assert 1 <= active_units(training, IMAGES) <= 3


def test_linear_accuracy_needs_means_that_vary() -> None:
    labels = np.arange(600) % 3
    means = np.eye(3)[labels] + 0.1 * np.random.default_rng(0).standard_normal((600, 3))
    halves = [(means[part], labels[part]) for part in (slice(300), slice(300, 600))]
    assert linear_accuracy(*halves) > 0.99
    faint = [(1e-4 * half, label) for half, label in halves]
    assert linear_accuracy(*faint) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_check(check: Check, backend: str) -> None:
    found = check(infomax_vae, backend)["alphas"]
    assert found[["decoder", "alpha"]].to_numpy().tolist() == [
        ["autoregressive", alpha] for alpha in (0.0, 4.0)
    ]
    assert (found.log_prob < 0).all()
    assert found.accuracy.between(0, 1).all()
    # The KL splits into the information and what q(z) is off, which is not negative.
    assert (found.information < found.kl + 0.05).all()


def test_it_says_which_images_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infomax_vae.main(["--full", "--out", str(tmp_path)]) == 2
    assert "--full needs --data-dir" in capsys.readouterr().err

"""The demo's scores where everything is known, and what its pictures show."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from demo import data
from demo.evaluation import binomial_log_prob, evaluate, fit
from demo.figures import PRIOR_MASSES, PRIOR_NOTE
from demo.pictures import draw_pixels, principal_plane
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared


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

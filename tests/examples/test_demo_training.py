"""The demo's trainings, in both halves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from demo import backend
from demo.backend import Setting
from demo.evaluation import binomial_log_prob
from demo.training import minibatches

HALVES = ["pyro", pytest.param("numpyro", marks=pytest.mark.slow)]


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


@pytest.mark.parametrize("name", HALVES)
def test_training_repeats_itself_and_lowers_the_loss(name: str) -> None:
    half = backend.load(name)
    losses = []
    for _ in range(2):
        training = half.start(half.TraceMeanField_ELBO, IMAGES, SETTING)
        order = np.random.default_rng(0)
        losses.append([training.epoch(minibatches(64, 16, order)) for _ in range(20)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize("name", HALVES)
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

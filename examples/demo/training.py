"""The loop over epochs, the same for every objective and backend."""

import math
import time
from argparse import Namespace

import numpy as np
from tqdm import tqdm

from demo.backend import Setting, Training
from demo.data import ImageData
from demo.evaluation import evaluate, fit
from demo.pictures import take_pictures
from demo.results import Epoch, Result

BATCH_SIZE = 128


def train_and_evaluate(
    training: Training, name: str, data: ImageData, setting: Setting, options: Namespace
) -> Result:
    """Train under one objective, with the minibatches of any other, and measure what it gave."""
    order = np.random.default_rng(setting.seed)
    size = len(data.train_images)
    label = name if options.seeds == 1 else f"{name}, seed {setting.seed}"
    # Where there is no terminal, `disable=None` hides the bar.
    bar = tqdm(range(options.epochs), desc=label, disable=options.quiet or None, unit="epoch")
    epochs = []
    for _ in bar:
        start = time.perf_counter()
        loss = training.epoch(minibatches(size, BATCH_SIZE, order)) / size
        seconds = time.perf_counter() - start
        epochs.append(Epoch(loss, seconds, fit(training, data.test_images, levels=data.levels)))
        bar.set_postfix(loss=f"{loss:.1f}")
    return Result(
        objective=name,
        seed=setting.seed,
        epochs=epochs,
        scores=evaluate(training, data),
        pictures=take_pictures(training, data, setting),
    )


def minibatches(size: int, batch_size: int, order: np.random.Generator) -> list[np.ndarray]:
    """Shuffle `0..size-1` into minibatches whose sizes differ by one at most."""
    return np.array_split(order.permutation(size), math.ceil(size / batch_size))

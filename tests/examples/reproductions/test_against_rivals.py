"""The comparisons run with both backends, and the same loss is matched to the rival's."""

from __future__ import annotations

import importlib
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest

from tests.examples.reproductions.conftest import BACKENDS, Check
from tests.numpyro_backend.conftest import quick_double_precision as quick_double_precision

script = pytest.importorskip("against_rivals")
autoencoders = importlib.import_module("rival_objectives.autoencoders")
measures = importlib.import_module("rival_objectives.measures")
posteriors = importlib.import_module("rival_objectives.posteriors")
tables = importlib.import_module("rival_objectives.tables")

SHORT = autoencoders.Plan(steps=3, hidden=8, learning_rate=1e-2, samples=5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_check(
    check: Check, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(measures.NEEDS, "pythae", "no_such_package")
    found = check(script, backend)
    fits, trainings = found["posteriors"].set_index("method"), found["autoencoders"]
    assert set(fits.index) == {"AutoNormal", "TraceHamiltonian_ELBO", "AutoDAIS"}
    assert (fits["bound"] <= fits["evidence"]).all()
    assert (fits["evidence"] < 0).all(), "so few draws see no more than the funnel's mouth"
    assert list(trainings["method"]) == ["TraceMMD_ELBO"]
    assert "pythae is left out: no_such_package is not installed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("quick_double_precision")
def test_the_backends_train_the_same_autoencoder() -> None:
    """With no noise to speak of in the measures: the same weights, measured by both."""
    weights = autoencoders.first_weights(SHORT, 0)
    plan = autoencoders.Plan(steps=0, hidden=8, learning_rate=0.0, samples=300)
    ours, theirs = (autoencoders.measure(weights, plan, backend=b) for b in BACKENDS)
    assert ours["log_evidence"] == pytest.approx(theirs["log_evidence"], abs=0.02)
    assert ours["reconstruction"] == pytest.approx(theirs["reconstruction"], abs=0.02)
    assert ours["mmd_squared"] == pytest.approx(theirs["mmd_squared"], abs=0.005)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_pythae_descends_the_same_loss(monkeypatch: pytest.MonkeyPatch, alpha: float) -> None:
    """Without a step taken, its loss times N is `TraceMMD_ELBO`'s in expectation."""
    pytest.importorskip("pythae")
    rivals = importlib.import_module("rival_objectives.autoencoders_rivals")
    plan = autoencoders.Plan(steps=60, hidden=8, learning_rate=0.0, samples=2)
    found = {}
    trainers = {
        "pythae": (rivals, rivals.train),
        "TraceMMD_ELBO": (autoencoders, partial(autoencoders.train, backend="pyro")),
    }
    for name, (module, train) in trainers.items():
        losses: list[float] = []

        def keep(step, batches, losses=losses):
            losses += [float(step(rows)) for rows in batches]
            return 0.0

        monkeypatch.setattr(module, "take_steps", keep)
        train(name, alpha, 0, plan)
        found[name] = np.array(losses)
    found["TraceMMD_ELBO"] /= len(autoencoders.images()[0])
    difference = found["pythae"] - found["TraceMMD_ELBO"]
    assert difference.mean() == pytest.approx(0.0, abs=4 * difference.std() / math.sqrt(60))
    assert difference.std() / math.sqrt(60) < 0.03 * found["pythae"].mean()


@pytest.mark.parametrize("method", ["Trace_MMD", "pythae"])
@pytest.mark.parametrize("learning_rate", [0.0, 1e-2])
def test_rivals_train_the_same_weights(method: str, learning_rate: float) -> None:
    pytest.importorskip("pythae")
    rivals = importlib.import_module("rival_objectives.autoencoders_rivals")
    plan = autoencoders.Plan(steps=2, hidden=8, learning_rate=learning_rate, samples=2)
    start, trained = autoencoders.first_weights(plan, 0), rivals.train(method, 1.0, 0, plan).weights
    for before, after in ((start.encoder, trained.encoder), (start.decoder, trained.decoder)):
        for (kernel, _), (trained_kernel, _) in zip(before, after, strict=True):
            moved = np.abs(kernel - trained_kernel).max()
            # Adam's first steps are of the size of the learning rate.
            assert 0.5 * learning_rate <= moved <= 2.5 * learning_rate


def test_the_funnel_has_the_moments_of_its_draws() -> None:
    rng = np.random.default_rng(0)
    v = posteriors.FUNNEL_SD * rng.standard_normal(4_000_000)
    # E x² = E exp(v), whose draws are heavy tailed: tilt them by exp(v) to take its mean.
    tilted = v + posteriors.FUNNEL_SD**2
    log_ratio = 0.5 * (tilted**2 - v**2) / posteriors.FUNNEL_SD**2
    estimate = np.exp(tilted - log_ratio)
    moments = posteriors.funnel_moments()
    assert moments["v"] == (0.0, pytest.approx(v.std(), rel=2e-3))
    assert moments["x[8]"] == (0.0, pytest.approx(math.sqrt(estimate.mean()), rel=1e-3))


def test_errors_are_those_of_the_moments() -> None:
    """Off by half a standard deviation, and a quarter too narrow, in one of two latents."""
    chain = pd.DataFrame({"latent": ["weights[0]", "weights[1]"], "mean": [1.0, 0.0], "sd": 2.0})
    fit = {"problem": "logistic", "method": "AutoNormal", "num_steps": 4, "seed": 0}
    fit |= dict.fromkeys(tables.PER_RUN, 0.0)
    frame = pd.DataFrame(
        [
            fit | {"latent": "weights[0]", "mean": 2.0, "sd": 1.5},
            fit | {"latent": "weights[1]", "mean": 0.0, "sd": 2.0},
        ]
    )
    (run,) = tables.posterior_runs(frame, chain).to_dict("records")
    assert (run["mean_error"], run["sd_error"]) == (0.25, 0.125)


def test_bounds_of_weights() -> None:
    """w = 1, 3: log 2 is the evidence, half of log 3 the bound, 16 / 10 count."""
    fit = posteriors.Fit(np.log([1.0, 3.0]), np.zeros((2, 1)), 0.5)
    found = posteriors.bounds(fit)
    assert found["evidence"] == pytest.approx(math.log(2))
    assert found["bound"] == pytest.approx(math.log(3) / 2)
    assert found["bound_se"] == pytest.approx(math.log(3) / 2)
    assert found["effective"] == pytest.approx(1.6)
    assert found["step_ms"] == 500.0

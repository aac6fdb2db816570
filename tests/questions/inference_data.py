"""Programs for ArviZ, and what is asked of the data that come of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests.halves import Case
from tests.questions.asking import Asking, data
from tests.questions.programs import WEIGHT, in_plate, vae

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz", exc_type=ImportError)
    plt = pytest.importorskip("matplotlib.pyplot")

GROUPS = [
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
]
SAMPLE = ("chain", "draw")
NOISE = 0.5
X = data()[:, 0]
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
LENGTHS = np.array([5, 3, 1, 4])
SEQUENCES = data(20).reshape(5, 4, 3)
PADDED = np.arange(5)[:, None] >= LENGTHS


def run(half: Asking, case: Case, *args: Any, **settings: Any) -> Any:
    settings = {"num_samples": 20, **settings}
    return half.ask(half.to_inference_data, case, *args, **settings)


def dims(data: Any, group: str) -> dict[str, tuple[str, ...]]:
    return {name: values.dims for name, values in data[group].data_vars.items()}


def normals(half: Asking, *, x: np.ndarray = X, mask: np.ndarray | None = None) -> Case:
    """z_i ~ N(0, 1), x_i ~ N(z_i, 0.5²), and the posterior N(0.8 x_i, 0.2) as the guide."""
    rows, loc = half.array(x), half.array(0.8 * X)

    def model(_: Any) -> None:
        z = half.sample("z", half.dist.Normal(0 * loc, 1.0))
        with half.mask(mask):
            half.sample("x", half.dist.Normal(z, NOISE), obs=rows)

    def guide(_: Any) -> None:
        half.sample("z", half.dist.Normal(loc, 0.2**0.5))

    return Case(*(in_plate(half, 12, draw) for draw in (model, guide)))


def schools(half: Asking) -> Case:
    """Eight schools, not centred: a latent per school and a deterministic effect."""
    effects, errors = half.array(EFFECTS), half.array(ERRORS)
    zero = half.array(0.0)

    def model() -> None:
        mu = half.sample("mu", half.dist.Normal(zero, 5.0))
        tau = half.sample("tau", half.dist.HalfCauchy(zero + 5.0))
        with half.plate("schools", 8):
            eta = half.sample("eta", half.dist.Normal(0 * errors, 1.0))
            theta = half.deterministic("theta", mu + tau * eta)
            half.sample("effect", half.dist.Normal(theta, errors), obs=effects)

    def guide() -> None:
        half.sample("mu", half.dist.Normal(zero + 4.0, 0.3))
        half.sample("tau", half.dist.LogNormal(zero + 1.0, 0.1))
        with half.plate("schools", 8):
            half.sample("eta", half.dist.Normal(0 * errors, 0.1))

    return Case(model, guide)


def nested(half: Asking) -> Case:
    """A latent per group and one per item of a group."""
    x = half.array(data(24).reshape(4, 6, 3))

    def program(observe: bool) -> Callable[[], None]:
        def run() -> None:
            with half.plate("groups", 6):
                outer = half.sample("outer", half.dist.Normal(0 * x[0], 1.0).to_event(1))
                with half.plate("items", 4, dim=-2):
                    z = half.sample("z", half.dist.Normal(outer + 0 * x, 1.0).to_event(1))
                    if observe:
                        half.sample("x", half.dist.Normal(z, 0.7).to_event(1), obs=x)

        return run

    return Case(program(True), program(False))


def sequences(half: Asking) -> Case:
    """Ragged sequences: a latent per step in plates (time, data), the padding masked."""
    x = half.array(SEQUENCES)

    def program(observe: bool) -> Callable[[], None]:
        def run() -> None:
            plates = half.plate("data", 4), half.plate("time", 5, dim=-2)
            with plates[0], plates[1], half.mask(~PADDED):
                z = half.sample("z", half.dist.Normal(0 * x, 1.0).to_event(1))
                if observe:
                    half.sample("x", half.dist.Normal(z, 0.7).to_event(1), obs=x)

        return run

    return Case(program(True), program(False))


def discrete(half: Asking) -> Case:
    """A latent that is 0 or 1, with data about it."""
    x = half.array(X)

    def program(observe: bool) -> Callable[[Any], None]:
        def draw(_: Any) -> None:
            y = half.sample("y", half.dist.Bernoulli(0.5 + 0 * x))
            if observe:
                half.sample("x", half.dist.Normal(y, NOISE), obs=x)

        return draw

    return Case(*(in_plate(half, 12, program(observe)) for observe in (True, False)))


def _of_minibatch(drawn: Any) -> np.ndarray:
    x = data()[drawn.coords["data"].values]
    return norm.logpdf(x, np.tanh(drawn["z"].values) @ WEIGHT.T, 0.7)


PROGRAMS: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], Callable[[Any], Any]]] = {
    "minibatch": (lambda half: vae(half, batch=5), {"chunk_size": 3}, _of_minibatch),
    "nested": (
        nested,
        {"chunk_size": 1},
        lambda drawn: norm.logpdf(data(24).reshape(4, 6, 3), drawn["z"].values, 0.7),
    ),
    "sequences": (
        sequences,
        {},
        lambda drawn: norm.logpdf(SEQUENCES, drawn["z"].values, 0.7) * ~PADDED[..., None],
    ),
    "discrete": (discrete, {}, lambda drawn: norm.logpdf(X, drawn["y"].values, NOISE)),
    "schools": (
        schools,
        {},
        lambda drawn: norm.logpdf(EFFECTS, drawn["theta"].values, ERRORS),
    ),
}
_DRAWN: dict[tuple[str, str], Any] = {}


def drawn(half: Asking, name: str) -> Any:
    """Four draws from one of the programs, whose scale must not count; drawn once for all tests."""
    key = half.library.__name__, name
    if key not in _DRAWN:
        program, settings, _ = PROGRAMS[name]
        case = program(half)
        scaled = case._replace(model=half.scaled(case.model, 3.0))
        _DRAWN[key] = run(half, scaled, num_samples=4, **settings)
    return _DRAWN[key]

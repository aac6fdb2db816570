"""What NumPyro's questions keep beside what both halves do: keys, pytrees, draws of all data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend import diagnostics
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def ask(question: str, case: Programs, **settings: Any) -> Any:
    key = jax.random.key(0)
    return getattr(diagnostics, question)(key, {}, case.model, case.guide, *case.args, **settings)


def model_of(num: int) -> Callable[..., None]:
    def model() -> None:
        with numpyro.plate("data", num):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.zeros(num))

    return model


def all_at_once(locs: np.ndarray) -> Programs:
    """The data are in the event dim of one normal, whose location is none per datum."""

    def guide() -> None:
        numpyro.sample("z", dist.Normal(locs, 0.5).to_event(1))

    return Programs(model_of(len(locs)), guide, ())


def test_active_units_of_a_guide_that_draws_all_data_at_once() -> None:
    locs = programs.data(500, 1)[:, 0]
    units = ask("active_units", all_at_once(locs), sites="z")
    assert 0 < units.standard_error[0] < 0.05
    assert abs(units.variance[0] - locs.var(ddof=1)) < 4 * units.standard_error[0]


@pytest.mark.parametrize("question", ["kl_by_dimension", "aggregated_posterior"])
def test_refuses_densities_of_all_data_at_once(question: str) -> None:
    refused = r"the guide to draw 'z' with batch shape \(4,\), as the model does; got \(\)"
    with pytest.raises(ValueError, match=refused):
        ask(question, all_at_once(np.zeros(4)), sites="z")


@pytest.mark.parametrize(
    "question", ["active_units", "kl_by_dimension", "mmd_test", "suggest_lambd", "summarise"]
)
def test_refuses_one_code_for_all(question: str) -> None:
    case = Programs(model_of(5), lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), ())
    refused = r"Expected the guide to draw 'z' with batch shape \(5,\), as the model does; got \(\)"
    with pytest.raises(ValueError, match=f"{question}.*{refused}"):
        ask(question, case)


@pytest.mark.parametrize("num_features", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_kl_of_a_transform_of_all_features(num_features: int) -> None:
    """KL(LogNormal ‖ LogNormal) is that of the normals; a single feature is all there is."""
    locs = np.array([[-2.0, 0.1], [-0.5, 0.0], [0.3, 0.4], [3.0, -0.2]])[:, :num_features]
    scales = np.array([[0.3, 1.1], [0.6, 0.9], [1.5, 1.0], [0.5, 0.7]])[:, :num_features]

    def positive(loc: np.ndarray, scale: np.ndarray) -> Callable[[], None]:
        def program() -> None:
            normal = dist.Normal(loc, scale).to_event(1)
            with numpyro.plate("data", 4):
                fn = dist.TransformedDistribution(normal, dist.transforms.ExpTransform())
                numpyro.sample("z", fn)

        return program

    prior = positive(np.zeros(num_features), np.ones(num_features))
    report = ask("kl_by_dimension", Programs(prior, positive(locs, scales), ()), num_samples=200)
    expected = (0.5 * (scales**2 + locs**2 - 1) - np.log(scales)).sum(1)
    assert (report.standard_error < 0.3).all(), "too few draws to tell"
    assert (abs(report.per_datum - expected) < 4 * report.standard_error).all()
    reasons = ["the density of TransformedDistribution does not split by dimension"]
    assert list(report.unsplit.values()) == reasons * (num_features - 1)
    split = report.per_datum if num_features == 1 else np.full(4, np.nan)
    np.testing.assert_allclose(report.terms[:, 0], split)


class Witness:
    """Notes which data it was shown, with the number of its updates."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, np.ndarray]] = []

    def init(self, rng_key: Array) -> Array:
        return jnp.asarray(0.1)

    def bind(self, weight: Array) -> Any:
        def critic(x: Array, z: Array) -> Array:
            jax.debug.callback(self._note, weight, x)
            return weight * z[:, 0]

        return critic

    def _note(self, weight: Array, x: Array) -> None:
        # Of which precision they are depends on the thread that the callback runs in.
        single, data = np.float32(weight), np.asarray(x, np.float32)
        self.seen.append((float(single), np.unique(data)))

    def shown(self) -> tuple[set[float], set[float]]:
        """What it saw before its last update, and after it."""
        jax.effects_barrier()
        last = self.seen[-1][0]
        trained, evaluated = (
            set(np.concatenate([x for weight, x in self.seen if (weight == last) is after]))
            for after in (False, True)
        )
        return trained, evaluated


@pytest.mark.slow
def test_training_and_evaluation_share_no_datum() -> None:
    """And masked data are in neither."""
    x, kept = jnp.arange(100.0)[:, None], jnp.arange(100) % 5 != 0

    def program(*, observe: bool) -> Callable[[], None]:
        def run() -> None:
            plate = numpyro.plate("data", 100, subsample_size=40)
            with plate as index, handlers.mask(mask=kept[index]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
                if observe:
                    numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

        return run

    critic = Witness()
    case = Programs(program(observe=True), program(observe=False), ())
    settings = {"num_steps": 50, "num_samples": 500, "batch_size": 8, "held_out": 0.3}
    report = ask("mutual_information", case, critic=critic, **settings)
    trained, evaluated = critic.shown()
    assert not trained & evaluated
    assert trained | evaluated == set(np.arange(100)[kept])
    assert report.num_data == len(evaluated) <= 30


def test_images_and_labels_in_a_dictionary() -> None:
    """Images are observed flat, and may be missing; labels, of the same length, stay.

    The guide sees the same data in each of its draws.
    """
    seen: list[dict[str, np.ndarray]] = []

    def model(*, data: dict[str, Array]) -> None:
        with numpyro.plate("data", 20):
            z = numpyro.sample("z", dist.Normal(data["labels"], 1.0))
            fn = dist.Bernoulli(logits=jnp.broadcast_to(z[:, None], (20, 4))).to_event(1)
            numpyro.sample("x", fn, obs=data["images"].reshape(20, -1))

    def guide(*, data: dict[str, Array]) -> None:
        jax.debug.callback(seen.append, data)
        with numpyro.plate("data", 20):
            loc = data["images"].mean((1, 2, 3)) + data["labels"]
            numpyro.sample("z", dist.Normal(loc, 1.0))

    images = np.full((20, 1, 2, 2), math.nan, np.float32)
    data = {"images": images, "labels": np.arange(20.0) - 10}
    diagnostics.simulation_based_calibration(
        jax.random.key(0), {}, model, guide, data=data, num_simulations=1, num_samples=3
    )
    jax.effects_barrier()
    assert len(seen) >= 3
    for shown in seen:
        assert shown["images"].shape == (20, 1, 2, 2)
        assert shown["images"].dtype == np.float32
        assert set(np.unique(shown["images"])) == {0.0, 1.0}
        np.testing.assert_array_equal(shown["images"], seen[0]["images"])
        np.testing.assert_array_equal(shown["labels"], data["labels"])

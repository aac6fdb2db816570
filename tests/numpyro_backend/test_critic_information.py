"""mutual_information by a critic, against normals of known information."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from numpyro_backend.diagnostics import mutual_information
from numpyro_backend.mutual_information import MutualInformationEstimate, nwj
from tests.numpyro_backend import programs
from tests.numpyro_backend.information_programs import aggregated, correlated
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def information_of(case: Programs, *, seed: int = 0, **settings: Any) -> Any:
    return mutual_information(
        jax.random.key(seed), {}, case.model, case.guide, *case.args, **settings
    )


class Exact:
    """The best NWJ critic of `correlated`: 1 + log q(z | x) / q(z)."""

    def __init__(self, information: float, dims: int) -> None:
        self.rho = math.sqrt(1 - math.exp(-2 * information / dims))
        self.information = information

    def init(self, rng_key: Array) -> dict[str, Any]:
        return {"slope": jnp.asarray(self.rho), "constant": jnp.asarray(1 + self.information)}

    def bind(self, params: dict[str, Any]) -> Any:
        def critic(x: Array, z: Array) -> Array:
            scale = jnp.sqrt(1 - params["slope"] ** 2)
            own = -0.5 * ((z - params["slope"] * x) / scale) ** 2
            return params["constant"] + (own + 0.5 * z**2).sum(-1)

        return critic


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

    @property
    def trained(self) -> set[float]:
        """What it saw before its last update."""
        return self._seen(lambda weight, last: weight != last)

    @property
    def evaluated(self) -> set[float]:
        return self._seen(lambda weight, last: weight == last)

    def _seen(self, when: Any) -> set[float]:
        jax.effects_barrier()
        last = self.seen[-1][0]
        return set(np.concatenate([x for weight, x in self.seen if when(weight, last)]))


class TestMutualInformation:
    def test_a_trained_critic_finds_the_information(self) -> None:
        case = correlated(programs.data(1000, 2), information=1.5)
        report = information_of(case, num_steps=200, learning_rate=2e-3)
        assert 0 < report.standard_error < 0.06
        assert report.estimate == pytest.approx(1.5, abs=0.08 + 4 * report.standard_error)
        assert report.num_data == 500
        assert report.bound == "nwj"

    @pytest.mark.parametrize("bound", ["nwj", "infonce", "js"])
    def test_the_best_critic_gives_the_information(self, bound: str) -> None:
        case = correlated(programs.data(2000, 2), information=1.0, batch=200)
        critic = Exact(1.0, 2)
        if bound == "js":
            critic.information -= 1.0  # its best critic is the log ratio itself
        report = information_of(case, critic=critic, bound=bound, num_steps=0, num_samples=6000)
        assert report.estimate == pytest.approx(1.0, abs=4 * report.standard_error + 0.02)
        assert report.standard_error < 0.06

    def test_standard_errors_are_those_of_a_mean_over_data(self) -> None:
        """Of a bound that is the mean of a function of x, over 20 data: the textbook's."""

        class Scores(Witness):
            def bind(self, params: Any) -> Any:
                note = super().bind(params)
                return lambda x, z: 0 * note(x, z) + x[:, 0]

        def mean_score(joint: Array, marginal: Array, *, joint_weights: Any, **_: Any) -> Any:
            mean = (joint * joint_weights).sum() / joint_weights.sum()
            return MutualInformationEstimate(mean, mean)

        critic = Scores()
        report = information_of(
            correlated(programs.data(40, 1), information=0.5, batch=30),
            critic=critic,
            bound=mean_score,
            num_steps=0,
            batch_size=8,
            num_samples=20_000,
        )
        x = np.array(sorted(critic.evaluated), float)
        assert report.num_data == len(x) == 20
        error = x.std(ddof=1) / math.sqrt(20)
        assert report.estimate == pytest.approx(x.mean(), abs=0.05 * error)
        assert report.standard_error == pytest.approx(error, rel=0.05)

    def test_what_the_critic_memorises_does_not_count(self) -> None:
        """A code that has nothing to do with x, but is always the same for a datum."""
        x, hidden = programs.data(120, 2), programs.data(120, 2, seed=9)
        model, _, args = correlated(x, information=1.0)

        def guide(x: Array) -> None:
            with numpyro.plate("data", 120):
                numpyro.sample("z", dist.Normal(hidden, 0.1).to_event(1))

        case = Programs(model, guide, args)
        report = information_of(case, num_steps=100, learning_rate=5e-3, num_samples=500)
        assert aggregated(case).mutual_information > 3.0
        assert report.estimate < 4 * report.standard_error

    def test_training_and_evaluation_share_no_datum(self) -> None:
        """And masked data are in neither."""
        x = jnp.arange(100.0)[:, None]
        kept = jnp.arange(100) % 5 != 0
        critic = Witness()
        report = information_of(
            correlated(x, information=1.0, batch=40, kept=kept),
            critic=critic,
            num_steps=50,
            num_samples=500,
            batch_size=8,
            held_out=0.3,
        )
        assert not critic.trained & critic.evaluated
        assert critic.trained | critic.evaluated == set(np.arange(100)[kept])
        assert report.num_data == len(critic.evaluated) <= 30

    def test_batches_that_are_filled_up_change_nothing(self) -> None:
        """Two data are in no batch of 3 rows alone: the estimate is that of pairs."""
        x = jnp.arange(4.0)[:, None]
        case = correlated(x, information=0.5)
        critic = Exact(0.5, 1)
        filled, exact = (
            information_of(
                case, critic=critic, num_steps=0, batch_size=size, num_samples=400, held_out=0.5
            )
            for size in (3, 2)
        )
        assert filled.num_data == exact.num_data == 2
        assert filled.estimate == pytest.approx(exact.estimate, rel=1e-12)

    def test_data_may_be_a_function_and_of_any_shape(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And a bar is shown where tqdm is installed."""

        class Images(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x: Array, z: Array) -> Array:
                assert x.shape[1:] == (1, 2, 2)
                rows = jnp.concatenate([x.reshape(len(x), -1), z], 1)
                return flax.linen.Dense(1)(rows)[:, 0]

        shown = []

        def bar(steps: Any, **settings: Any) -> Any:
            shown.append((settings["total"], settings["disable"]))
            return steps

        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
        report = information_of(
            correlated(programs.data(60, 2), information=1.0, batch=20),
            critic=Images(),
            data=lambda x: np.concatenate([x, x], -1).reshape(60, 1, 2, 2),
            bound=nwj,
            num_steps=5,
            num_samples=50,
        )
        assert math.isfinite(report.estimate)
        assert report.bound == "nwj"
        assert shown == [(5, None)]

    def test_counts_and_constant_features(self) -> None:
        """Integers, and a pixel that is always 0, as the default critic may meet them."""
        x = np.stack([np.arange(200) % 16, np.zeros(200, int)], -1)

        def model(x: Array) -> None:
            with numpyro.plate("data", 200):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                rate = jnp.broadcast_to(jnp.exp(z)[:, None], (200, 2))
                numpyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

        def guide(x: Array) -> None:
            with numpyro.plate("data", 200):
                numpyro.sample("z", dist.Normal(x[:, 0] / 5, 0.1))

        settings = {"num_steps": 100, "learning_rate": 5e-3, "num_samples": 2000}
        with jax.enable_x64(False):
            report = information_of(Programs(model, guide, (x,)), **settings)
        assert report.estimate > 1.0

    def test_of_the_parameters_given(self) -> None:
        case = correlated(programs.data(500, 2), information=2.0)
        settings = {"critic": Exact(2.0, 2), "num_steps": 0, "num_samples": 500}
        params = {"slope": 0.0}
        report = mutual_information(jax.random.key(0), params, *case[:2], *case.args, **settings)
        assert report.estimate < 0

    def test_minibatches_with_too_few_rows_of_a_part_are_left_out(self) -> None:
        """Of 3 rows at random, 2 or more are held out in half the minibatches."""
        case = correlated(programs.data(2000, 1), information=0.5, batch=3)
        report = information_of(case, critic=Exact(0.5, 1), num_steps=3, num_samples=1000)
        assert report.estimate == pytest.approx(0.5, abs=4 * report.standard_error)
        assert report.standard_error < 0.1

    def test_the_same_key_gives_the_same_report(self) -> None:
        case = correlated(programs.data(40, 1), information=0.5, batch=20)
        first, second = (
            information_of(case, critic=Exact(0.5, 1), num_steps=0, num_samples=50)
            for _ in range(2)
        )
        assert first == second


REFUSED_BY_CRITIC: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "nothing held out": (programs.vae(), {"held_out": 0.0}, "held_out between 0 and 1; got 0.0"),
    "all held out": (programs.vae(), {"held_out": 1.0}, "held_out between 0 and 1; got 1.0"),
    "one held out": (
        programs.vae(num=10),
        {"held_out": 0.1},
        r"at least 2 rows of each run to train the critic on.*got 1: use more data",
    ),
    "batch": (programs.vae(), {"batch_size": 1}, r"batch_size >= 2.*got .*batch_size=1"),
    "steps": (programs.vae(), {"num_steps": -1}, r"num_steps >= 0.*got num_steps=-1"),
    "samples": (programs.vae(), {"num_samples": 1}, r"num_samples >= 2; got .*num_samples=1"),
    "bound": (programs.vae(), {"bound": "mine"}, "got 'mine'"),
    "data": (
        programs.vae(),
        {"data": "y"},
        r"mutual_information: Expected the observed site 'y' .*got \['x'\]",
    ),
    "several plates": (programs.nested(), {}, "mutual_information: the latents .*different plates"),
}


@pytest.mark.parametrize(
    ("case", "settings", "match"), REFUSED_BY_CRITIC.values(), ids=REFUSED_BY_CRITIC
)
def test_mutual_information_refuses(case: Programs, settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        information_of(case, **settings)

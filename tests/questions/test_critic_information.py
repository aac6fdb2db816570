"""mutual_information by a critic, against normals of known information."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyro_infovae._core.information import MutualInformationReport, Split
from pyro_infovae.mutual_information import BOUNDS
from tests.halves import Case
from tests.questions.asking import Asking, data, in_numpyro, slow_in_numpyro
from tests.questions.programs import correlated, in_plate, nested, vae


def exact(half: Asking, information: float, dims: int, *, constant: float = 1.0) -> Any:
    """The best NWJ critic of `correlated`: 1 + log q(z | x) / q(z)."""
    rho = math.sqrt(1 - math.exp(-2 * information / dims))

    def score(params: Any, x: Any, z: Any) -> Any:
        slope = params["slope"]
        own = -0.5 * (z - slope * x) ** 2 / (1 - slope**2)
        return params["constant"] + (own + 0.5 * z**2).sum(-1)

    params = {"slope": np.array(rho), "constant": np.array(constant + information)}
    return half.critic(score, params)


def test_standard_errors_are_those_of_a_mean_over_data() -> None:
    """The jackknife leaves out one group of data at a time: of 20 data, each by itself."""
    x = data(20, 1)[:, 0]
    split = Split.of(20, 0.5, np.random.default_rng(0))
    assert split.is_held_out.sum() == 10
    assert split.counted.shape == (21, 20)
    estimates = np.array([x[counted].mean() for counted in split.counted])
    report = MutualInformationReport.of(estimates, max, num_data=20)
    assert report.bound == "max"
    assert report.estimate == pytest.approx(x.mean())
    assert report.standard_error == pytest.approx(x.std(ddof=1) / math.sqrt(20))


class TestMutualInformation:
    @slow_in_numpyro
    def test_a_trained_critic_finds_the_information(self, half: Asking) -> None:
        case = correlated(half, data(1000, 2), information=1.5)
        report = half.ask("mutual_information", case, num_steps=200, learning_rate=2e-3)
        assert 0 < report.standard_error < 0.06
        assert report.estimate == pytest.approx(1.5, abs=0.08 + 4 * report.standard_error)
        assert report.num_data == 500
        assert report.bound == "nwj"

    @pytest.mark.parametrize(
        ("half", "bound"),
        [
            *(("pyro", bound) for bound in BOUNDS),
            ("numpyro", "nwj"),
            pytest.param("numpyro", "js", marks=pytest.mark.slow),
        ],
        indirect=["half"],
    )
    def test_the_best_critic_gives_the_information(self, half: Asking, bound: str) -> None:
        case = correlated(half, data(1000, 2), information=1.0, batch=200)
        # The best critic of "js" is the log ratio itself.
        critic = exact(half, 1.0, 2, constant=0.0 if bound == "js" else 1.0)
        report = half.ask(
            "mutual_information", case, critic=critic, bound=bound, num_steps=0, num_samples=2000
        )
        assert report.estimate == pytest.approx(1.0, abs=4 * report.standard_error + 0.02)
        assert report.standard_error < 0.06

    def test_the_standard_error_of_a_mean_over_data(self, half: Asking) -> None:
        """Of a bound that is the mean of a function of x, ±1, over 20 data: the textbook's."""

        def score(params: Any, x: Any, z: Any) -> Any:
            return 0 * params["weight"] * z[:, 0] + x[:, 0]

        def mean_score(joint: Any, marginal: Any, *, joint_weights: Any, **_: Any) -> Any:
            mean = (joint * joint_weights).sum() / joint_weights.sum()
            return half.library.mutual_information.MutualInformationEstimate(mean, mean)

        report = half.ask(
            "mutual_information",
            correlated(half, np.repeat([[1.0], [-1.0]], 20, axis=0), information=0.5),
            critic=half.critic(score, {"weight": np.array(0.1)}),
            bound=mean_score,
            num_steps=0,
            batch_size=8,
            num_samples=200,
        )
        assert report.num_data == 20
        assert 20 * report.estimate == pytest.approx(round(20 * report.estimate))
        error = math.sqrt((1 - report.estimate**2) / 19)
        assert report.standard_error == pytest.approx(error, rel=1e-6)

    @pytest.mark.slow
    def test_minibatches_with_too_few_rows_of_a_part_are_left_out(self, half: Asking) -> None:
        """Of 3 rows at random, 2 or more are held out in half the minibatches."""
        case = correlated(half, data(1000, 1), information=0.3, batch=3)
        settings = {"num_steps": 3, "num_samples": 1000 if half.compiles else 600}
        report = half.ask("mutual_information", case, critic=exact(half, 0.3, 1), **settings)
        assert report.estimate == pytest.approx(0.3, abs=4 * report.standard_error)
        assert report.standard_error < 0.1

    @pytest.mark.slow
    def test_what_the_critic_memorises_does_not_count(self, half: Asking) -> None:
        """A code that has nothing to do with x, but is always the same for a datum."""
        hidden = half.array(data(120, 2, seed=9))
        normal = half.dist.Normal(hidden, 0.1).to_event(1)
        case = correlated(half, data(120, 2), information=1.0)._replace(
            guide=in_plate(half, 120, lambda _: half.sample("z", normal))
        )
        report = half.ask(
            "mutual_information", case, num_steps=100, learning_rate=5e-3, num_samples=500
        )
        assert half.ask("aggregated_posterior", case).mutual_information > 3.0
        assert report.estimate < 4 * report.standard_error

    @pytest.mark.slow
    @in_numpyro
    def test_batches_that_are_not_full_change_nothing(self, half: Asking) -> None:
        """Two data are in no batch of 3 rows alone: the estimate is that of pairs."""
        case = correlated(half, np.arange(4.0)[:, None], information=0.5)
        settings = {"critic": exact(half, 0.5, 1), "num_steps": 0, "num_samples": 400}
        filled, pairs = (
            half.ask("mutual_information", case, batch_size=size, **settings) for size in (3, 2)
        )
        assert filled.num_data == pairs.num_data == 2
        assert filled.estimate == pytest.approx(pairs.estimate, rel=1e-12)

    @slow_in_numpyro
    def test_data_may_be_a_function_and_of_any_shape(
        self, half: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And a bar is shown where tqdm is installed."""

        def score(params: Any, x: Any, z: Any) -> Any:
            assert x.shape[1:] == (1, 2, 2)
            return params["weight"] * (x.reshape(len(x), -1)[:, 0] + z[:, 0])

        shown = []

        def bar(steps: Any, **settings: Any) -> Any:
            shown.append((settings["total"], settings["disable"]))
            return steps

        images = half.array(data(60, 4).reshape(60, 1, 2, 2))
        settings = {
            "critic": half.critic(score, {"weight": np.array(0.1)}),
            "data": lambda: images,
            "bound": half.library.mutual_information.nwj,
            "num_steps": 5,
            "num_samples": 50,
        }
        case = correlated(half, data(60, 2), information=1.0, batch=20)
        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
        report = half.ask("mutual_information", case, **settings)
        assert math.isfinite(report.estimate)
        assert report.bound == "nwj"
        assert shown == [(5, None)]
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert half.ask("mutual_information", case, **settings) == report
        assert shown == [(5, None)]

    @slow_in_numpyro
    def test_counts_and_constant_features(self, half: Asking) -> None:
        """Integers, and a pixel that is always 0, as the default critic may meet them."""
        x = np.stack([np.arange(200) % 16, np.zeros(200, int)], -1)

        def model(counts: Any) -> Any:
            def draw(_: Any) -> None:
                z = half.sample("z", half.dist.Normal(half.array(np.zeros(200)), 1.0))
                rate = half.xp.exp(z)[:, None] + 0 * half.array(x.astype(float))
                half.sample("x", half.dist.Poisson(rate).to_event(1), obs=counts)

            return draw

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(half.array(x[:, 0] / 5), 0.1))

        with half.single_precision():
            case = Case(*(in_plate(half, 200, p) for p in (model(half.array(x)), guide)))
            settings = {"num_steps": 100, "learning_rate": 5e-3, "num_samples": 2000}
            assert half.ask("mutual_information", case, **settings).estimate > 1.0

    def test_of_the_parameters_given(self, half: Asking) -> None:
        case = correlated(half, data(500, 2), information=2.0)
        settings = {"critic": exact(half, 2.0, 2), "num_steps": 0, "num_samples": 500}
        report = half.ask("mutual_information", case, params={"slope": 0.0}, **settings)
        assert report.estimate < 0


def small(half: Asking) -> Case:
    return vae(half, num=10)


REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "nothing held out": (vae, {"held_out": 0.0}, "held_out between 0 and 1; got 0.0"),
    "all held out": (vae, {"held_out": 1.0}, "held_out between 0 and 1; got 1.0"),
    "one held out": (
        small,
        {"held_out": 0.1},
        r"at least 2 rows of each run to train the critic on.*got 1: use more data",
    ),
    "batch": (vae, {"batch_size": 1}, r"batch_size >= 2.*got .*batch_size=1"),
    "steps": (vae, {"num_steps": -1}, r"num_steps >= 0.*got num_steps=-1"),
    "samples": (vae, {"num_samples": 1}, r"num_samples >= 2; got .*num_samples=1"),
    "bound": (vae, {"bound": "mine"}, "got 'mine'"),
    "data": (
        vae,
        {"data": "y"},
        r"mutual_information: Expected the observed site 'y' .*got \['x'\]",
    ),
    "several plates": (nested, {}, "mutual_information: the latents .*different plates"),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(half: Asking, case: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        half.ask("mutual_information", case(half), **settings)

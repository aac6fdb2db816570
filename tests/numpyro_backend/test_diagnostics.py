"""Diagnostics against mixtures and normals whose information is known."""

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
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import norm

from numpyro_backend.diagnostics import aggregated_posterior, mutual_information
from numpyro_backend.mutual_information import MutualInformationEstimate, nwj
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

LOCS = np.array([-2.0, -0.5, 0.3, 0.9, 3.0])
SCALES = np.array([0.3, 0.6, 0.2, 1.0, 0.5])


def mixture(*, batch: int | None = None, mask: Any = True) -> Programs:
    """q(z | x_i) = N(LOCS_i, SCALES_i²), p(z) = N(0, 1)."""

    def model(x: Array) -> None:
        with numpyro.plate("data", 5, subsample_size=batch) as index, handlers.mask(mask=mask):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        with numpyro.plate("data", 5, subsample_size=batch) as index, handlers.mask(mask=mask):
            scale = jnp.asarray(SCALES, x.dtype)[index]
            numpyro.sample("z", dist.Normal(jnp.asarray(x)[index], scale))

    return Programs(model, guide, (LOCS,))


def log_densities(locs: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, ...]:
    """A grid of z, and on it log q(z | x_i) of each datum, log q(z) and log p(z)."""
    z = np.linspace(-12.0, 12.0, 200_001)
    log_q = norm.logpdf(z, locs[:, None], scales[:, None])
    return z, log_q, np.logaddexp.reduce(log_q) - math.log(len(locs)), norm.logpdf(z)


def by_quadrature(locs: np.ndarray, scales: np.ndarray) -> tuple[float, float, float]:
    """I, E KL(q(z | x) ‖ p) and KL(q ‖ p) of a mixture of normals, by sums over a grid."""
    z, log_q, log_mixture, log_p = log_densities(locs, scales)

    def mean(log_ratio: np.ndarray) -> float:
        return float((np.exp(log_q) * log_ratio).sum() * (z[1] - z[0]) / len(locs))

    return mean(log_q - log_mixture), mean(log_q - log_p), mean(log_mixture - log_p)


def standard_errors(locs: np.ndarray, scales: np.ndarray, *, num_samples: int) -> Any:
    """Of means over so many draws from each q(z | x_i) of the three log ratios."""
    z, log_q, log_mixture, log_p = log_densities(locs, scales)

    def error(log_ratio: np.ndarray) -> float:
        mean, square = (
            (np.exp(log_q) * log_ratio**power).sum(1) * (z[1] - z[0]) for power in (1, 2)
        )
        return math.sqrt((square - mean**2).mean() / (len(locs) * num_samples))

    return error(log_q - log_mixture), error(log_q - log_p), error(log_mixture - log_p)


def aggregated(case: Programs, *, seed: int = 0, params: Any = None, **settings: Any) -> Any:
    key = jax.random.key(seed)
    return aggregated_posterior(key, params or {}, case.model, case.guide, *case.args, **settings)


def assert_agree(report: Any, expected: tuple[float, float, float], *, num_data: int) -> None:
    got = [
        (report.mutual_information, report.mutual_information_error),
        (report.kl, report.kl_error),
        (report.marginal_kl, report.marginal_kl_error),
    ]
    for (value, error), reference in zip(got, expected, strict=True):
        assert 0 < error < 0.07
        assert abs(value - reference) < 4 * error
    assert report.num_data == num_data


class TestAggregatedPosterior:
    @pytest.mark.parametrize("batch", [None, 2])
    def test_of_a_mixture(self, batch: int | None) -> None:
        """A minibatch plate is run over all its minibatches, and no datum counts twice."""
        report = aggregated(mixture(batch=batch), num_samples=1000)
        assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)
        assert report.kl == pytest.approx(report.mutual_information + report.marginal_kl)
        errors = standard_errors(LOCS, SCALES, num_samples=1000)
        got = report.mutual_information_error, report.kl_error, report.marginal_kl_error
        assert got == pytest.approx(errors, rel=0.1)

    def test_in_single_precision(self) -> None:
        with jax.enable_x64(False):
            case = mixture(batch=2)._replace(args=(LOCS.astype(np.float32),))
            assert_agree(aggregated(case, num_samples=300), by_quadrature(LOCS, SCALES), num_data=5)

    def test_masked_data_are_no_part_of_it(self) -> None:
        mask = np.array([True, False, True, True, False])
        report = aggregated(mixture(mask=mask), num_samples=400)
        assert_agree(report, by_quadrature(LOCS[mask], SCALES[mask]), num_data=3)

    def test_chunks_change_nothing(self) -> None:
        reports = [aggregated(mixture(batch=2), chunk_size=size) for size in (None, 7)]
        assert vars(reports[0]) == pytest.approx(vars(reports[1]), rel=1e-12)

    def test_of_normal_data(self) -> None:
        """q(z) = p(z), up to the chance in 1000 data, and I = -½ log(1 - ρ²) in each of 2 dims."""
        x = programs.data(1000, 2)
        x = (x - x.mean(0)) / x.std(0)
        report = aggregated(correlated(x, information=1.0), num_samples=5)
        assert report.mutual_information == pytest.approx(1.0, abs=0.03)
        assert report.marginal_kl == pytest.approx(0.0, abs=0.03)
        assert report.marginal_kl_error < 0.005

    def test_of_several_latents_jointly_in_nested_plates(self) -> None:
        """Two independent coordinates of 6 data in plates of 2 x 3: a grid in the plane."""
        locs = np.stack([LOCS[[0, 1, 2, 3, 4, 0]], LOCS[[4, 0, 2, 1, 3, 3]]]).reshape(2, 2, 3)

        def plates() -> Any:
            groups = numpyro.plate("groups", 3, subsample_size=2, dim=-1)
            return numpyro.plate("items", 2, dim=-2), groups

        def model() -> None:
            items, groups = plates()
            with items, groups:
                for name in "ab":
                    numpyro.sample(name, dist.Normal(0.0, 1.0))

        def guide() -> None:
            items, groups = plates()
            with items, groups as index:
                for name, loc in zip("ab", locs, strict=True):
                    numpyro.sample(name, dist.Normal(jnp.asarray(loc)[:, index], 0.6))

        z = np.linspace(-6.0, 6.0, 401)
        log_a, log_b = (norm.logpdf(z, loc.reshape(6, 1), 0.6) for loc in locs)
        log_q = log_a[:, :, None] + log_b[:, None]
        log_mixture = np.logaddexp.reduce(log_q) - math.log(6)
        log_p = norm.logpdf(z)[:, None] + norm.logpdf(z)
        expected = tuple(
            float((np.exp(log_q) * ratio).sum() * 0.03**2 / 6)
            for ratio in (log_q - log_mixture, log_q - log_p, log_mixture - log_p)
        )
        report = aggregated(Programs(model, guide, ()), num_samples=400)
        assert_agree(report, expected, num_data=6)

    def test_a_guide_that_draws_in_unconstrained_space(self) -> None:
        """AutoNormal of a positive latent: all terms are those of log z, whose prior is normal."""

        def model() -> None:
            with numpyro.plate("data", 5):
                numpyro.sample("z", dist.LogNormal(0.0, 1.0))

        case = Programs(model, AutoNormal(model), ())
        params = {"z_auto_loc": LOCS, "z_auto_scale": SCALES}
        report = aggregated(case, params=params, num_samples=400)
        assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)

    def test_a_code_that_tells_all_data_apart(self) -> None:
        report = aggregated(mixture()._replace(args=(100 * LOCS,)))
        assert report.mutual_information == pytest.approx(math.log(5), abs=1e-6)

    def test_sites_leave_out_what_other_latents_depend_on(self) -> None:
        report = aggregated(programs.two_latents(exact=True), sites=["z1"])
        assert report.mutual_information == pytest.approx(0.0, abs=1e-12), "drawn from the prior"


def _drawn_by(guide: Any, **settings: Any) -> Programs:
    return mixture(**settings)._replace(guide=guide)


def _point_mass(x: Array) -> None:
    with numpyro.plate("data", 5):
        numpyro.sample("z", dist.Delta(jnp.asarray(x)))


def _dropout(x: Array) -> None:
    kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, x.shape)
    with numpyro.plate("data", 5):
        numpyro.sample("z", dist.Normal(kept * x, 1.0))


def _one_code_for_all(x: Array) -> None:
    numpyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def _two_subsampled() -> Programs:
    def program() -> None:
        rows, columns = (
            numpyro.plate(name, 6, subsample_size=3, dim=dim)
            for name, dim in (("rows", -2), ("columns", -1))
        )
        with rows, columns:
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(program, program, ())


def _chosen_minibatch() -> Programs:
    case = mixture(batch=2)
    rows = {"data": jnp.array([0, 2])}
    return case._replace(guide=handlers.substitute(case.guide, data=rows))


REFUSED_BY_AGGREGATED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "one draw": (mixture(), {"num_samples": 1}, "num_samples >= 2; got 1"),
    "no chunk": (mixture(), {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "point mass": (
        _drawn_by(_point_mass),
        {},
        "the guide draws 'z' as a point mass, which has no density",
    ),
    "dropout": (_drawn_by(_dropout), {}, r"q\(z \| x\) changes from run to run.*dropout"),
    "one code for all": (
        _drawn_by(_one_code_for_all),
        {"sites": "z"},
        r"the guide to draw 'z' with batch shape \(5,\), as the model does; got \(\)",
    ),
    "other latents": (
        programs.two_latents(exact=True),
        {},
        r"q\(z2 \| x\) changes from run to run.*another latent",
    ),
    "several subsampled": (
        _two_subsampled(),
        {},
        r"minibatches of one plate; got several that are subsampled, \['rows', 'columns'\]",
    ),
    "chosen minibatch": (
        _chosen_minibatch(),
        {},
        "needs all data, and plate 'data' is given some of them by handlers.substitute",
    ),
    "several plates": (
        programs.nested(),
        {},
        r"aggregated_posterior: the latents \[\['outer'\], \['z'\]\] are in different plates",
    ),
    "unknown site": (mixture(), {"sites": "y"}, "aggregated_posterior: sites names 'y'"),
}


@pytest.mark.parametrize(
    ("case", "settings", "match"), REFUSED_BY_AGGREGATED.values(), ids=REFUSED_BY_AGGREGATED
)
def test_aggregated_posterior_refuses(case: Programs, settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        aggregated(case, **settings)


def correlated(
    x: Any, *, information: float, batch: int | None = None, kept: Any = None
) -> Programs:
    """A guide whose code has the given information in nats about standard normal data."""
    num, dims = x.shape
    rho = math.sqrt(1 - math.exp(-2 * information / dims))
    kept = jnp.ones(num, bool) if kept is None else kept

    def model(x: Array) -> None:
        plate = numpyro.plate("data", num, subsample_size=batch)
        with plate as index, handlers.mask(mask=kept[index]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(dims), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        slope = numpyro.param("slope", rho)
        plate = numpyro.plate("data", num, subsample_size=batch)
        with plate as index, handlers.mask(mask=kept[index]):
            loc = slope * jnp.asarray(x)[index]
            numpyro.sample("z", dist.Normal(loc, math.sqrt(1 - rho**2)).to_event(1))

    return Programs(model, guide, (x,))


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
            jax.debug.callback(lambda w, x: self.seen.append((float(w), np.unique(x))), weight, x)
            return weight * z[:, 0]

        return critic

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
        x = np.array(sorted(critic.evaluated))
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

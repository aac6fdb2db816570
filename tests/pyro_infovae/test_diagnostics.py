"""Diagnostics against mixtures and normals whose information is known."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_infovae import ConcatCritic
from pyro_infovae.diagnostics import aggregated_posterior, mutual_information
from pyro_infovae.mutual_information import BOUNDS, nwj
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

LOCS = torch.tensor([-2.0, -0.5, 0.3, 0.9, 3.0], dtype=torch.float64)
SCALES = torch.tensor([0.3, 0.6, 0.2, 1.0, 0.5], dtype=torch.float64)
STANDARD = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


def mixture(*, batch: int | None = None, mask: Any = True) -> Programs:
    """q(z | x_i) = N(LOCS_i, SCALES_i²), p(z) = N(0, 1)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 5, subsample_size=batch) as index, pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 5, subsample_size=batch) as index, pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(x[index], SCALES[index]))

    return Programs(model, guide, (LOCS,))


def by_quadrature(locs: Tensor, scales: Tensor) -> tuple[float, float, float]:
    """I, E KL(q(z | x) ‖ p) and KL(q ‖ p) of a mixture of normals, by sums over a grid."""
    z = torch.linspace(-12.0, 12.0, 200_001)
    step = float(z[1] - z[0])
    log_q = dist.Normal(locs[:, None], scales[:, None]).log_prob(z)
    log_mixture = log_q.logsumexp(0) - math.log(len(locs))
    log_p = STANDARD.log_prob(z)

    def mean(log_ratio: Tensor) -> float:
        return float((log_q.exp() * log_ratio).sum() * step / len(locs))

    return mean(log_q - log_mixture), mean(log_q - log_p), mean(log_mixture - log_p)


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
    @pytest.mark.parametrize("batch", [None, 2, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_a_mixture(self, batch: int | None, dtype: torch.dtype) -> None:
        """A minibatch plate is run over all its minibatches, and no datum counts twice."""
        torch.set_default_dtype(dtype)
        model, guide, (x,) = mixture(batch=batch)
        report = aggregated_posterior(model, guide, x.to(dtype), num_samples=300)
        assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)

    def test_the_kl_is_the_sum_of_the_two_others(self) -> None:
        report = aggregated_posterior(*mixture()[:2], LOCS, num_samples=3)
        assert report.kl == pytest.approx(report.mutual_information + report.marginal_kl)

    def test_masked_data_are_no_part_of_it(self) -> None:
        mask = torch.tensor([True, False, True, True, False])
        report = aggregated_posterior(*mixture(mask=mask)[:2], LOCS, num_samples=400)
        assert_agree(report, by_quadrature(LOCS[mask], SCALES[mask]), num_data=3)

    def test_standard_errors_are_the_spread_over_seeds(self) -> None:
        model, guide, args = mixture()
        reports = [aggregated_posterior(model, guide, *args, num_samples=8) for _ in range(80)]
        for name in ("mutual_information", "kl", "marginal_kl"):
            spread = torch.tensor([getattr(report, name) for report in reports]).std()
            claimed = torch.tensor([getattr(report, f"{name}_error") for report in reports]).mean()
            assert float(claimed / spread) == pytest.approx(1.0, abs=4 / math.sqrt(2 * 80))

    @pytest.mark.parametrize("chunk_size", [1, 3, 100])
    def test_chunks_change_nothing(self, chunk_size: int) -> None:
        model, guide, args = mixture(batch=2)
        reports = []
        for size in (None, chunk_size):
            pyro.set_rng_seed(1)
            reports.append(aggregated_posterior(model, guide, *args, chunk_size=size))
        assert vars(reports[0]) == pytest.approx(vars(reports[1]), rel=1e-12)

    def test_of_normal_data(self) -> None:
        """q(z) = p(z), up to the chance in 1000 data, and I = -½ log(1 - ρ²) in each of 2 dims."""
        x = programs.data(1000, 2)
        x = (x - x.mean(0)) / x.std(0, correction=0)
        model, guide, _ = correlated(x, information=1.0)
        report = aggregated_posterior(model, guide, x, num_samples=5)
        assert report.mutual_information == pytest.approx(1.0, abs=0.03)
        assert report.marginal_kl == pytest.approx(0.0, abs=0.03)
        assert report.marginal_kl_error < 0.005

    def test_of_several_latents_jointly_in_nested_plates(self) -> None:
        """Two independent coordinates of 6 data in plates of 2 x 3: a grid in the plane."""
        locs = torch.stack([LOCS[[0, 1, 2, 3, 4, 0]], LOCS[[4, 0, 2, 1, 3, 3]]]).reshape(2, 2, 3)

        def plates() -> Any:
            return pyro.plate("items", 2, dim=-2), pyro.plate("groups", 3, subsample_size=2)

        def model() -> None:
            items, groups = plates()
            with items, groups:
                for name in "ab":
                    pyro.sample(name, dist.Normal(0.0, 1.0))

        def guide() -> None:
            items, groups = plates()
            with items, groups as index:
                for name, loc in zip("ab", locs, strict=True):
                    pyro.sample(name, dist.Normal(loc[:, index], 0.6))

        z = torch.linspace(-6.0, 6.0, 401)
        log_a, log_b = (dist.Normal(loc.reshape(6, 1), 0.6).log_prob(z) for loc in locs)
        log_q = log_a[:, :, None] + log_b[:, None]
        log_mixture = log_q.logsumexp(0) - math.log(6)
        log_p = STANDARD.log_prob(z)[:, None] + STANDARD.log_prob(z)
        expected = tuple(
            float((log_q.exp() * ratio).sum() * 0.03**2 / 6)
            for ratio in (log_q - log_mixture, log_q - log_p, log_mixture - log_p)
        )
        assert_agree(aggregated_posterior(model, guide, num_samples=400), expected, num_data=6)

    def test_a_guide_that_draws_in_unconstrained_space(self) -> None:
        """AutoNormal of a positive latent: all terms are those of log z, whose prior is normal."""

        def model() -> None:
            with pyro.plate("data", 5):
                pyro.sample("z", dist.LogNormal(0.0, 1.0))

        guide = AutoNormal(model)
        guide()
        with torch.no_grad():
            pyro.param("AutoNormal.locs.z").unconstrained().copy_(LOCS)
            store = pyro.get_param_store()
            store["AutoNormal.scales.z"] = SCALES.clone()
        report = aggregated_posterior(model, guide, num_samples=400)
        assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)

    def test_a_code_that_tells_all_data_apart(self) -> None:
        model, guide, _ = mixture()
        report = aggregated_posterior(model, guide, 100 * LOCS)
        assert report.mutual_information == pytest.approx(math.log(5), abs=1e-6)

    def test_leaves_the_parameters_alone(self) -> None:
        case = programs.vae(num=20, batch=7)
        _assert_untouched(case, lambda: aggregated_posterior(case.model, case.guide, *case.args))


def _point_mass() -> Programs:
    model, _, args = mixture()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Delta(x))

    return Programs(model, guide, args)


def _dropout() -> Programs:
    model, _, args = mixture()
    dropout = nn.Dropout(0.5)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(dropout(x), 1.0))

    return Programs(model, guide, args)


def _two_subsampled() -> Programs:
    def program(*, observe: bool) -> Any:
        def run() -> None:
            rows, columns = (
                pyro.plate(name, 6, subsample_size=3, dim=dim)
                for name, dim in (("rows", -2), ("columns", -1))
            )
            with rows, columns:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if observe:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3, 3))

        return run

    return Programs(program(observe=True), program(observe=False), ())


def _chosen_minibatch() -> Programs:
    rows = torch.tensor([0, 2])

    def model(x: Tensor) -> None:
        with pyro.plate("data", 5, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 5, subsample=rows):
            pyro.sample("z", dist.Normal(x[rows], 1.0))

    return Programs(model, guide, (LOCS,))


REFUSED_BY_AGGREGATED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "one draw": (mixture(), {"num_samples": 1}, "num_samples >= 2; got 1"),
    "no chunk": (mixture(), {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "point mass": (_point_mass(), {}, "the guide draws 'z' as a point mass, which has no density"),
    "dropout": (_dropout(), {}, r"q\(z \| x\) changes from run to run.*dropout"),
    "other latents": (
        programs.two_latents(exact=True),
        {},
        r"q\(z2 \| x\) changes from run to run.*another latent",
    ),
    "undrawn latent": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {},
        r"the guide does not draw 'y', on which the prior of \['z'\] may depend",
    ),
    "several subsampled": (
        _two_subsampled(),
        {},
        r"minibatches of one plate; got several that are subsampled, \['rows', 'columns'\]",
    ),
    "chosen minibatch": (
        _chosen_minibatch(),
        {},
        "needs all data, and plate 'data' is given some of them as subsample=",
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
        aggregated_posterior(case.model, case.guide, *case.args, **settings)


def test_sites_leave_out_what_other_latents_depend_on() -> None:
    case = programs.two_latents(exact=True)
    report = aggregated_posterior(case.model, case.guide, *case.args, sites=["z1"])
    assert report.mutual_information == pytest.approx(0.0, abs=1e-12), "z1 is drawn from the prior"


def correlated(x: Tensor, *, information: float, batch: int | None = None) -> Programs:
    """A guide whose code has the given information in nats about standard normal data."""
    dims = x.shape[1]
    rho = math.sqrt(1 - math.exp(-2 * information / dims))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(rho))
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            scale = math.sqrt(1 - rho**2)
            pyro.sample("z", dist.Normal(slope * x[index], scale).to_event(1))

    return Programs(model, guide, (x,))


class Exact(nn.Module):
    """The best NWJ critic of `correlated`: 1 + log q(z | x) / q(z)."""

    def __init__(self, information: float, dims: int) -> None:
        super().__init__()
        rho = math.sqrt(1 - math.exp(-2 * information / dims))
        self.slope = nn.Parameter(torch.tensor(rho))
        self.information = information
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        self.seen.append(x.detach())
        scale = (1 - self.slope**2).sqrt()
        own = -0.5 * ((z - self.slope * x) / scale) ** 2
        return 1 + self.information + (own + 0.5 * z**2).sum(-1)


class TestMutualInformation:
    @pytest.mark.parametrize("information", [1.0, 2.0])
    def test_a_trained_critic_finds_the_information(self, information: float) -> None:
        case = correlated(programs.data(1000, 2), information=information)
        report = mutual_information(case.model, case.guide, *case.args, num_steps=300)
        assert 0 < report.standard_error < 0.06
        tolerance = 0.05 * information + 4 * report.standard_error
        assert report.estimate == pytest.approx(information, abs=tolerance)
        assert report.num_data == 500
        assert report.bound == "nwj"

    @pytest.mark.parametrize("bound", BOUNDS)
    @pytest.mark.parametrize("batch", [None, 200])
    def test_the_best_critic_gives_the_information(self, bound: str, batch: int | None) -> None:
        case = correlated(programs.data(2000, 2), information=1.0, batch=batch)
        critic = Exact(1.0, 2)
        if bound == "js":
            critic.information -= 1.0  # its best critic is the log ratio itself
        report = mutual_information(
            *case[:2], *case.args, critic=critic, bound=bound, num_steps=0, num_samples=6000
        )
        assert report.estimate == pytest.approx(1.0, abs=4 * report.standard_error + 0.02)
        assert report.standard_error < 0.06

    def test_minibatches_with_too_few_rows_of_a_part_are_left_out(self) -> None:
        """Of 3 rows at random, 2 or more are held out in half the minibatches."""
        case = correlated(programs.data(2000, 1), information=0.5, batch=3)
        report = mutual_information(
            *case[:2], *case.args, critic=Exact(0.5, 1), num_steps=3, num_samples=1000
        )
        assert report.estimate == pytest.approx(0.5, abs=4 * report.standard_error)
        assert report.standard_error < 0.1

    def test_standard_errors_are_the_spread_over_data_sets(self) -> None:
        reports = []
        for seed in range(40):
            case = correlated(programs.data(200, 1, seed=seed), information=0.5)
            reports.append(
                mutual_information(
                    *case[:2], *case.args, critic=Exact(0.5, 1), num_steps=0, num_samples=300
                )
            )
        spread = torch.tensor([report.estimate for report in reports]).std()
        claimed = torch.tensor([report.standard_error for report in reports]).square().mean().sqrt()
        assert float(claimed / spread) == pytest.approx(1.0, abs=4 / math.sqrt(2 * 40))

    def test_what_the_critic_memorises_does_not_count(self) -> None:
        """A code that has nothing to do with x, but is always the same for a datum."""
        x, hidden = programs.data(120, 2), programs.data(120, 2, seed=9)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 120):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 120):
                pyro.sample("z", dist.Normal(hidden, 0.1).to_event(1))

        report = mutual_information(model, guide, x, num_steps=300, num_samples=500)
        assert aggregated_posterior(model, guide, x).mutual_information > 3.0
        assert report.estimate < 4 * report.standard_error

    def test_training_and_evaluation_share_no_datum(self) -> None:
        x = torch.arange(100.0)[:, None]
        case = correlated(x, information=1.0, batch=40)
        critic = Recorder()
        mutual_information(
            *case[:2], x, critic=critic, num_steps=50, num_samples=500, batch_size=8, held_out=0.3
        )
        trained, evaluated = (set(Recorder.seen[mode]) for mode in (True, False))
        assert not trained & evaluated
        assert trained | evaluated == set(range(100))
        assert len(evaluated) == 30

    def test_masked_data_are_not_shown(self) -> None:
        x = torch.arange(40.0)[:, None]
        model, guide, _ = correlated(x, information=1.0)
        mask = torch.arange(40) % 4 != 0
        critic = Recorder()
        report = mutual_information(
            pyro.poutine.mask(model, mask=mask),
            pyro.poutine.mask(guide, mask=mask),
            x,
            critic=critic,
            num_steps=20,
            num_samples=200,
        )
        assert set(Recorder.seen[True]) | set(Recorder.seen[False]) <= set(
            torch.arange(40)[mask].tolist()
        )
        assert report.num_data <= 20

    def test_data_may_be_a_function_and_of_any_shape(self) -> None:
        class Images(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.critic = ConcatCritic(4, 2, hidden=(8,), x_encoder=nn.Flatten())

            def forward(self, x: Tensor, z: Tensor) -> Tensor:
                assert x.shape[1:] == (1, 2, 2)
                return self.critic(x, z)

        x = programs.data(60, 2)
        model, guide, _ = correlated(x, information=1.0, batch=20)
        report = mutual_information(
            model,
            guide,
            x,
            critic=Images(),
            data=lambda x: torch.cat([x, x], -1).reshape(60, 1, 2, 2),
            bound=nwj,
            num_steps=5,
            num_samples=50,
        )
        assert math.isfinite(report.estimate)
        assert report.bound == "nwj"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_counts_and_constant_features(self, dtype: torch.dtype) -> None:
        """Integers, and a pixel that is always 0, as the default critic may meet them."""
        torch.set_default_dtype(dtype)
        x = torch.stack([torch.arange(200) % 16, torch.zeros(200, dtype=torch.long)], -1)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 200):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Poisson(z[:, None].exp().expand(-1, 2)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 200):
                pyro.sample("z", dist.Normal(x[:, 0].to(dtype) / 5, 0.1))

        report = mutual_information(model, guide, x, num_steps=300, num_samples=2000)
        assert report.estimate > 1.0

    def test_leaves_parameters_and_critic_alone(self) -> None:
        case = programs.vae(num=20, batch=15)
        critic = ConcatCritic(3, 2, hidden=(8,))
        before = [parameter.detach().clone() for parameter in critic.parameters()]
        _assert_untouched(
            case,
            lambda: mutual_information(
                *case[:2], *case.args, critic=critic, num_steps=5, num_samples=20
            ),
        )
        assert all(map(torch.equal, critic.parameters(), before))
        assert all(parameter.grad is None for parameter in critic.parameters())

    def test_shows_a_bar_where_tqdm_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = []

        def bar(steps: Any, **settings: Any) -> Any:
            shown.append(settings["total"])
            return steps

        case = correlated(programs.data(40, 1), information=0.5)
        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
        mutual_information(*case[:2], *case.args, num_steps=3, num_samples=20)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        mutual_information(*case[:2], *case.args, num_steps=3, num_samples=20)
        assert shown == [3]


class Recorder(nn.Module):
    """Keeps which data it was shown, in training and after it; copies share the record."""

    seen: dict[bool, list[float]]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))
        Recorder.seen = {True: [], False: []}

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        Recorder.seen[self.training].extend(x[:, 0].tolist())
        return self.weight * z[:, 0]


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
        mutual_information(case.model, case.guide, *case.args, **settings)


def _assert_untouched(case: Programs, question: Any) -> None:
    question()
    assert not list(pyro.get_param_store()), "a guide that was never run leaves no parameter"
    SVI(case.model, case.guide, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO()).step(*case.args)
    store = pyro.get_param_store()
    before = {name: (value, value.detach().clone()) for name, value in store._params.items()}
    for value, _ in before.values():
        value.grad = None
    question()
    assert store._params.keys() == before.keys()
    for name, (value, copied) in before.items():
        assert store._params[name] is value
        assert torch.equal(value, copied)
        assert value.grad is None
    assert torch.is_grad_enabled()

"""aggregated_posterior against sums over grids, and normals of known information."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_infovae.diagnostics import aggregated_posterior
from tests.pyro_infovae import programs
from tests.pyro_infovae.information_programs import correlated
from tests.pyro_infovae.param_store import assert_untouched
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
        assert_untouched(case, lambda: aggregated_posterior(case.model, case.guide, *case.args))


def test_sites_leave_out_what_other_latents_depend_on() -> None:
    case = programs.two_latents(exact=True)
    report = aggregated_posterior(case.model, case.guide, *case.args, sites=["z1"])
    assert report.mutual_information == pytest.approx(0.0, abs=1e-12), "z1 is drawn from the prior"


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

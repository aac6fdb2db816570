"""aggregated_posterior against sums over grids, and normals of known information."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from pyro_infovae._core.information import AggregatedPosterior
from tests.halves import Case
from tests.questions.asking import Asking, data, slow_in_numpyro
from tests.questions.programs import (
    correlated,
    in_plate,
    nested,
    several_subsampled,
    two_latents,
)

LOCS = np.array([-2.0, -0.5, 0.3, 0.9, 3.0])
SCALES = np.array([0.3, 0.6, 0.2, 1.0, 0.5])


def mixture(half: Asking, *, locs: np.ndarray = LOCS, **plate: Any) -> Case:
    """q(z | x_i) = N(LOCS_i, SCALES_i²), p(z) = N(0, 1)."""
    loc, scale = half.array(locs), half.array(SCALES)

    def model(index: Any) -> None:
        z = half.sample("z", half.dist.Normal(half.xp.zeros_like(loc[index]), 1.0))
        half.sample("x", half.dist.Normal(z, 1.0), obs=loc[index])

    def guide(index: Any) -> None:
        half.sample("z", half.dist.Normal(loc[index], scale[index]))

    return Case(*(in_plate(half, 5, draw, **plate) for draw in (model, guide)))


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


def test_standard_errors_are_the_spread_over_seeds() -> None:
    rng = np.random.default_rng(0)
    reports = [AggregatedPosterior.of(*rng.normal(size=(3, 8, 5))) for _ in range(1000)]
    for name in ("mutual_information", "kl", "marginal_kl"):
        spread = np.std([getattr(report, name) for report in reports])
        claimed = np.mean([getattr(report, f"{name}_error") for report in reports])
        assert claimed / spread == pytest.approx(1.0, abs=4 / math.sqrt(2 * 1000))


class TestValues:
    @pytest.mark.parametrize(
        ("half", "batch"), [("pyro", None), ("pyro", 2), ("numpyro", 2)], indirect=["half"]
    )
    def test_of_a_mixture(self, half: Asking, batch: int | None) -> None:
        """A minibatch plate is run over all its minibatches, and no datum counts twice."""
        report = half.ask("aggregated_posterior", mixture(half, batch=batch), num_samples=300)
        assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)
        assert report.kl == pytest.approx(report.mutual_information + report.marginal_kl)
        errors = standard_errors(LOCS, SCALES, num_samples=300)
        got = report.mutual_information_error, report.kl_error, report.marginal_kl_error
        assert got == pytest.approx(errors, rel=0.1)

    @slow_in_numpyro
    def test_in_single_precision(self, half: Asking) -> None:
        with half.single_precision():
            case = mixture(half, batch=3)
            report = half.ask("aggregated_posterior", case, num_samples=300)
            assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)

    @slow_in_numpyro
    def test_masked_data_are_no_part_of_it(self, half: Asking) -> None:
        mask = np.array([True, False, True, True, False])
        report = half.ask("aggregated_posterior", mixture(half, mask=mask), num_samples=400)
        assert_agree(report, by_quadrature(LOCS[mask], SCALES[mask]), num_data=3)

    def test_chunks_change_nothing(self, half: Asking) -> None:
        case = mixture(half, batch=2)
        reports = [
            vars(half.ask("aggregated_posterior", case, chunk_size=size)) for size in (None, 3)
        ]
        assert reports[0] == pytest.approx(reports[1], rel=1e-12)

    @slow_in_numpyro
    def test_of_normal_data(self, half: Asking) -> None:
        """q(z) = p(z), up to the chance in 1000 data, and I = -½ log(1 - ρ²) in each of 2 dims."""
        x = data(1000, 2)
        case = correlated(half, (x - x.mean(0)) / x.std(0), information=1.0)
        report = half.ask("aggregated_posterior", case, num_samples=5)
        assert report.mutual_information == pytest.approx(1.0, abs=0.03)
        assert report.marginal_kl == pytest.approx(0.0, abs=0.03)
        assert report.marginal_kl_error < 0.005

    @slow_in_numpyro
    def test_of_several_latents_jointly_in_nested_plates(self, half: Asking) -> None:
        """Two independent coordinates of 6 data in plates of 2 x 3: a grid in the plane."""
        locs = np.stack([LOCS[[0, 1, 2, 3, 4, 0]], LOCS[[4, 0, 2, 1, 3, 3]]]).reshape(2, 2, 3)

        def program(locs: Any, scale: float) -> Any:
            def run() -> None:
                with half.plate("items", 2, dim=-2), half.plate("groups", 3, batch=2) as index:
                    for name, loc in zip("ab", half.array(locs), strict=True):
                        half.sample(name, half.dist.Normal(loc[:, index], scale))

            return run

        z = np.linspace(-6.0, 6.0, 401)
        log_a, log_b = (norm.logpdf(z, loc.reshape(6, 1), 0.6) for loc in locs)
        log_q = log_a[:, :, None] + log_b[:, None]
        log_mixture = np.logaddexp.reduce(log_q) - math.log(6)
        log_p = norm.logpdf(z)[:, None] + norm.logpdf(z)
        expected = tuple(
            float((np.exp(log_q) * ratio).sum() * 0.03**2 / 6)
            for ratio in (log_q - log_mixture, log_q - log_p, log_mixture - log_p)
        )
        case = Case(program(0 * locs, 1.0), program(locs, 0.6))
        report = half.ask("aggregated_posterior", case, num_samples=250)
        assert_agree(report, expected, num_data=6)

    @slow_in_numpyro
    def test_a_guide_that_draws_in_unconstrained_space(self, half: Asking) -> None:
        """AutoNormal of a positive latent: all terms are those of log z, whose prior is normal."""
        prior = half.dist.LogNormal(half.array(0.0), 1.0)
        case, params = half.auto_normal(
            in_plate(half, 5, lambda _: half.sample("z", prior)), LOCS, SCALES
        )
        report = half.ask("aggregated_posterior", case, params=params, num_samples=400)
        assert_agree(report, by_quadrature(LOCS, SCALES), num_data=5)

    @slow_in_numpyro
    def test_a_code_that_tells_all_data_apart(self, half: Asking) -> None:
        report = half.ask("aggregated_posterior", mixture(half, locs=100 * LOCS))
        assert report.mutual_information == pytest.approx(math.log(5), abs=1e-6)

    @slow_in_numpyro
    def test_sites_leave_out_what_other_latents_depend_on(self, half: Asking) -> None:
        report = half.ask("aggregated_posterior", two_latents(half), sites=["z1"])
        assert report.mutual_information == pytest.approx(0.0, abs=1e-12), "drawn from the prior"


def _drawn_by(posterior: Callable[[Asking], Any]) -> Callable[[Asking], Case]:
    def case(half: Asking) -> Case:
        return mixture(half)._replace(
            guide=in_plate(half, 5, lambda _: half.sample("z", posterior(half)))
        )

    return case


REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "one draw": (mixture, {"num_samples": 1}, "num_samples >= 2; got 1"),
    "no chunk": (mixture, {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "point mass": (
        _drawn_by(lambda half: half.dist.Delta(half.array(LOCS))),
        {},
        "the guide draws 'z' as a point mass, which has no density",
    ),
    "dropout": (
        _drawn_by(lambda half: half.dist.Normal(half.noise() * half.array(LOCS), 1.0)),
        {},
        r"q\(z \| x\) changes from run to run.*dropout",
    ),
    "other latents": (two_latents, {}, r"q\(z2 \| x\) changes from run to run.*another latent"),
    "several subsampled": (
        several_subsampled,
        {},
        r"minibatches of one plate; got several that are subsampled, \['rows', 'columns'\]",
    ),
    "chosen minibatch": (
        lambda half: mixture(half, index=np.array([0, 2])),
        {},
        "needs all data, and plate 'data' is given some of them (as subsample=|by handlers.subst)",
    ),
    "several plates": (
        nested,
        {},
        r"aggregated_posterior: the latents \[\['outer'\], \['z'\]\] are in different plates",
    ),
    "unknown site": (mixture, {"sites": "y"}, "aggregated_posterior: sites names 'y'"),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(half: Asking, case: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        half.ask("aggregated_posterior", case(half), **settings)

"""aggregated_posterior against sums over grids, and normals of known information."""

from __future__ import annotations

import math
from typing import Any

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

from tests.numpyro_backend import programs
from tests.numpyro_backend.information_programs import aggregated, correlated
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

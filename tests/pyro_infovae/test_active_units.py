"""Active units against the variance of posterior means that are known."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_infovae._diagnostics.active_units import active_units
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

LOCS = torch.tensor([-2.0, -0.5, 0.3, 0.9, 3.0], dtype=torch.float64)


def variance(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def with_conditional(conditional: Any, locs: Tensor = LOCS) -> Programs:
    """q(z | x_i) is a conditional of a location with two features, of which one ignores x."""

    def model() -> None:
        with pyro.plate("data", len(locs)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        with pyro.plate("data", len(locs)):
            pyro.sample("z", conditional(torch.stack([locs, torch.ones_like(locs)], -1)))

    return Programs(model, guide, ())


KNOWN = {
    "normal": lambda loc: dist.Normal(loc, 2.0).to_event(1),
    "point mass": lambda loc: dist.Delta(loc, event_dim=1),
}
DRAWN = {
    "laplace": lambda loc: dist.Laplace(loc, 1.0).to_event(1),
    "multivariate normal": lambda loc: dist.MultivariateNormal(loc, torch.eye(2)),
}


class TestKnownMeans:
    @pytest.mark.parametrize("conditional", KNOWN.values(), ids=KNOWN)
    def test_the_variance_of_the_guides_own_means(self, conditional: Any) -> None:
        case = with_conditional(conditional)
        units = active_units(case.model, case.guide)
        expected = torch.tensor([variance(LOCS.tolist()), 0.0])
        torch.testing.assert_close(units.variance, expected, rtol=1e-12, atol=1e-12)
        assert not units.standard_error.any()
        assert units.active.tolist() == [True, False]
        assert (units.num_active, units.num_data) == (1, 5)
        assert units.dimensions == ("z[0]", "z[1]")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("batch", [None, 5])
    def test_of_minibatches(self, batch: int | None, dtype: torch.dtype) -> None:
        torch.set_default_dtype(dtype)
        model, guide, (x,) = programs.vae(batch=batch)
        x = x.to(dtype)
        fn = pyro.poutine.trace(programs.vae().guide).get_trace(x).nodes["z"]["fn"]
        units = active_units(model, guide, x)
        assert units.variance.dtype == dtype
        torch.testing.assert_close(units.variance, fn.mean.detach().var(0))

    def test_of_the_exact_posterior_of_a_linear_model(self) -> None:
        """z ~ N(0, 1), x ~ N(2 z, 1): E[z | x] = 0.4 x, whose variance is 0.8."""
        x = math.sqrt(5.0) * torch.randn(20_000)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.4 * x, math.sqrt(0.2)))

        units = active_units(model, guide, x)
        assert float(units.variance) == pytest.approx(0.8, abs=4 * 0.8 * math.sqrt(2 / 20_000))

    def test_masked_data_do_not_count(self) -> None:
        mask = torch.tensor([True, True, False, True, False])
        case = with_conditional(KNOWN["normal"])
        units = active_units(
            pyro.poutine.mask(case.model, mask=mask), pyro.poutine.mask(case.guide, mask=mask)
        )
        assert float(units.variance[0]) == pytest.approx(variance(LOCS[mask].tolist()))
        assert units.num_data == 3

    def test_what_all_data_share_cancels(self) -> None:
        """z_i ~ N(θ + x_i, 1), θ drawn anew in every run: exactly the variance of x."""

        def model() -> None:
            pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 5):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        def guide() -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 10.0))
            with pyro.plate("data", 5):
                pyro.sample("z", dist.Normal(theta + LOCS, 1.0))

        units = active_units(model, guide, num_samples=4)
        assert float(units.variance) == pytest.approx(variance(LOCS.tolist()), rel=1e-10)


class TestDrawnMeans:
    @pytest.mark.parametrize("conditional", DRAWN.values(), ids=DRAWN)
    def test_is_unbiased_and_knows_its_error(self, conditional: Any) -> None:
        """The variance of the mean of 5 draws is at least 1/5, even where it ignores x."""
        case = with_conditional(conditional)
        reports = [active_units(case.model, case.guide, num_samples=5) for _ in range(150)]
        estimates = torch.stack([report.variance for report in reports])
        expected = torch.tensor([variance(LOCS.tolist()), 0.0])
        error = estimates.std(0) / math.sqrt(150)
        assert ((estimates.mean(0) - expected).abs() < 4 * error).all()
        assert 4 * error[1] < 1 / 5, "too few runs to tell"
        claimed = torch.stack([report.standard_error for report in reports]).square().mean(0).sqrt()
        ratio = claimed / estimates.std(0)
        assert ((ratio > 0.75) & (ratio < 1.6)).all(), ratio

    def test_the_error_shrinks_with_the_runs(self) -> None:
        case = with_conditional(DRAWN["laplace"])
        units = active_units(case.model, case.guide, num_samples=400)
        expected = torch.tensor([variance(LOCS.tolist()), 0.0])
        assert (units.standard_error < 0.15).all()
        assert ((units.variance - expected).abs() < 4 * units.standard_error).all()

    def test_a_latent_that_depends_on_another(self) -> None:
        """z2 | z1 ~ N(2 z1, .), z1 ~ N(0, 1): a location that is random, with a mean of 0."""
        case = programs.two_latents(num=200, exact=True)
        units = active_units(case.model, case.guide, *case.args, num_samples=30)
        assert units.variance[0] == 0, "its mean is known to be 0"
        assert 0 < units.standard_error[1] < 0.05
        assert abs(units.variance[1]) < 4 * units.standard_error[1]

    def test_the_mean_is_that_of_the_latent_itself(self) -> None:
        """AutoNormal of a positive latent: E[z] = exp(m + s² / 2), not m."""

        def model() -> None:
            with pyro.plate("data", 5):
                pyro.sample("z", dist.LogNormal(0.0, 1.0))

        guide = AutoNormal(model)
        guide()
        with torch.no_grad():
            pyro.param("AutoNormal.locs.z").unconstrained().copy_(LOCS / 2)
            pyro.get_param_store()["AutoNormal.scales.z"] = torch.full((5,), 0.5)
        units = active_units(model, guide, num_samples=300)
        expected = variance([math.exp(loc / 2 + 0.125) for loc in LOCS.tolist()])
        assert 0 < float(units.standard_error) < 0.1 * expected
        assert abs(float(units.variance) - expected) < 4 * float(units.standard_error)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"threshold": -0.1}, "threshold >= 0; got -0.1"),
        ({"threshold": math.nan}, "threshold >= 0; got nan"),
        ({"num_samples": 3}, "num_samples >= 4; got 3"),
    ],
)
def test_refuses(settings: dict[str, Any], match: str) -> None:
    case = programs.vae()
    with pytest.raises(ValueError, match=match):
        active_units(case.model, case.guide, *case.args, **settings)

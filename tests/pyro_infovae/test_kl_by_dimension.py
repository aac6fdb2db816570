"""KL by datum and dimension against closed forms and quadrature."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.kl_by_dimension import KLByDimension, kl_by_dimension
from pyro_infovae.diagnostics import aggregated_posterior
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

LOCS = torch.tensor([[-2.0, 0.1], [-0.5, 0.0], [0.3, 0.4], [3.0, -0.2]], dtype=torch.float64)
SCALES = torch.tensor([[0.3, 1.1], [0.6, 0.9], [1.5, 1.0], [0.5, 0.7]], dtype=torch.float64)


def pair(posterior: Any, prior: Any) -> Programs:
    """q(z | x_i) and p(z) of 4 data."""

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", prior)

    def guide() -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", posterior)

    return Programs(model, guide, ())


def assert_agree(report: KLByDimension, per_datum: Tensor, *, largest_error: float) -> None:
    assert (report.standard_error < largest_error).all(), "too few draws to tell"
    assert (report.standard_error > 0).all()
    assert ((report.per_datum - per_datum).abs() < 4 * report.standard_error).all()


class TestClosedForm:
    def test_of_normals(self) -> None:
        case = pair(
            dist.Normal(LOCS, SCALES).to_event(1), dist.Normal(0.5 * torch.ones(2), 1.5).to_event(1)
        )
        report = kl_by_dimension(case.model, case.guide)
        for i in range(4):
            for u in range(2):
                m, s = float(LOCS[i, u]), float(SCALES[i, u])
                expected = math.log(1.5 / s) + (s**2 + (m - 0.5) ** 2) / (2 * 1.5**2) - 0.5
                assert float(report.terms[i, u]) == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(report.per_datum, report.terms.sum(1))
        torch.testing.assert_close(report.per_dimension, report.terms.mean(0))
        assert report.mean == pytest.approx(float(report.terms.sum()) / 4)
        assert report.mean_error == 0
        assert not report.standard_error.any()
        assert report.dimensions == ("z[0]", "z[1]")
        assert not report.unsplit

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("batch", [None, 5])
    def test_of_minibatches(self, batch: int | None, dtype: torch.dtype) -> None:
        torch.set_default_dtype(dtype)
        model, guide, (x,) = programs.vae(batch=batch)
        fn = pyro.poutine.trace(programs.vae().guide).get_trace(x.to(dtype)).nodes["z"]["fn"]
        expected = kl_divergence(fn.base_dist, dist.Normal(torch.tensor(0.0), 1.0))
        report = kl_by_dimension(model, guide, x.to(dtype))
        assert report.terms.dtype == dtype
        torch.testing.assert_close(report.terms, expected.detach())

    def test_masked_data_are_left_out(self) -> None:
        case = programs.masked_vae()
        whole = programs.vae()
        report = kl_by_dimension(case.model, case.guide, *case.args)
        expected = kl_by_dimension(whole.model, whole.guide, *whole.args)
        assert report.datum.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
        torch.testing.assert_close(report.terms, expected.terms[report.datum])

    def test_of_a_guide_that_draws_in_unconstrained_space(self) -> None:
        def model() -> None:
            with pyro.plate("data", 4):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        guide = _auto_normal(model, LOCS, SCALES)
        expected = kl_divergence(dist.Normal(LOCS, SCALES), dist.Normal(torch.zeros(4, 2), 1.0))
        torch.testing.assert_close(kl_by_dimension(model, guide).terms, expected)


def _auto_normal(model: Any, locs: Tensor, scales: Tensor) -> AutoNormal:
    guide = AutoNormal(model)
    guide()
    store = pyro.get_param_store()
    store["AutoNormal.locs.z"] = locs.clone()
    store["AutoNormal.scales.z"] = scales.clone()
    return guide


class TestSampled:
    def test_by_dimension(self) -> None:
        """Laplace posteriors, by quadrature."""
        posterior, prior = dist.Laplace(LOCS, SCALES), dist.Normal(torch.zeros(2), 1.0)
        grid = torch.linspace(-25.0, 25.0, 200_001)[:, None, None]
        log_q = posterior.log_prob(grid)
        expected = (log_q.exp() * (log_q - prior.log_prob(grid))).sum(0) * 50 / 200_000
        case = pair(posterior.to_event(1), prior.to_event(1))
        report = kl_by_dimension(case.model, case.guide, num_samples=500)
        assert_agree(report, expected.sum(1), largest_error=0.3)
        assert ((report.terms - expected).abs() < 4 * report.standard_error[:, None]).all()
        assert not report.unsplit

    def test_a_density_that_does_not_split(self) -> None:
        factor = torch.tensor([[0.8, 0.0], [0.5, 0.4]])
        posterior = dist.MultivariateNormal(LOCS, scale_tril=factor)
        prior = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
        case = pair(posterior, dist.Normal(torch.zeros(2), 1.0).to_event(1))
        report = kl_by_dimension(case.model, case.guide, num_samples=500)
        assert_agree(report, kl_divergence(posterior, prior), largest_error=0.2)
        assert report.terms.isnan().all()
        assert report.unsplit == {
            "z": "the density of MultivariateNormal does not split by dimension"
        }

    def test_a_latent_that_splits_beside_one_that_does_not(self) -> None:
        """The terms of the first are known, and the sum of both."""
        joint = dist.MultivariateNormal(torch.ones(2), torch.eye(2))

        def model() -> None:
            with pyro.plate("data", 4):
                pyro.sample("a", dist.Normal(0.0, 1.0))
                pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        def guide() -> None:
            with pyro.plate("data", 4):
                pyro.sample("a", dist.Normal(2.0, 1.0))
                pyro.sample("b", joint)

        report = kl_by_dimension(model, guide, num_samples=500)
        assert report.dimensions == ("a", "b[0]", "b[1]")
        torch.testing.assert_close(report.terms[:, 0], torch.full((4,), 2.0))
        assert report.terms[:, 1:].isnan().all()
        assert list(report.unsplit) == ["b"]
        assert_agree(report, torch.full((4,), 3.0), largest_error=0.2)

    @pytest.mark.parametrize("num_features", [1, 2])
    def test_a_guide_that_draws_a_positive_latent_as_a_normal(self, num_features: int) -> None:
        """KL(LogNormal ‖ LogNormal) is that of the normals."""
        locs, scales = LOCS[:, :num_features], SCALES[:, :num_features]

        def model() -> None:
            with pyro.plate("data", 4):
                pyro.sample("z", dist.LogNormal(torch.zeros(num_features), 1.0).to_event(1))

        guide = _auto_normal(model, locs, scales)
        normal = dist.Normal(torch.zeros(()), 1.0)
        expected = kl_divergence(dist.Normal(locs, scales), normal).sum(1)
        report = kl_by_dimension(model, guide, num_samples=500)
        assert_agree(report, expected, largest_error=0.2)
        if num_features == 1:
            torch.testing.assert_close(report.terms[:, 0], report.per_datum)
        else:
            assert "in another space" in report.unsplit["z"]

    def test_standard_errors_are_the_spread_over_seeds(self) -> None:
        case = pair(dist.Laplace(LOCS[:, 0], SCALES[:, 0]), dist.Normal(0.0, 1.0))
        reports = [kl_by_dimension(case.model, case.guide, num_samples=8) for _ in range(80)]
        spread = torch.tensor([report.mean for report in reports]).std()
        claimed = torch.tensor([report.mean_error for report in reports]).square().mean().sqrt()
        assert float(claimed / spread) == pytest.approx(1.0, abs=4 / math.sqrt(2 * 80))


class TestSeveralLatents:
    def test_conditionals_given_one_another(self) -> None:
        """q is the prior, factor by factor: 0, though the second's location is random."""
        case = programs.two_latents(exact=True)
        assert not kl_by_dimension(case.model, case.guide, *case.args).terms.any()

    def test_drawn_in_another_order(self) -> None:
        """q(b) q(a | b) is p(a) p(b | a): the joint ratio is 1, the conditionals are not equal."""

        def model() -> None:
            with pyro.plate("data", 4):
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
                pyro.sample("b", dist.Normal(a, 1.0))

        def guide() -> None:
            with pyro.plate("data", 4):
                b = pyro.sample("b", dist.Normal(torch.zeros(()), math.sqrt(2.0)))
                pyro.sample("a", dist.Normal(b / 2, math.sqrt(0.5)))

        report = kl_by_dimension(model, guide)
        torch.testing.assert_close(report.per_datum, torch.zeros(4), rtol=0, atol=1e-12)

    def test_the_average_is_that_of_aggregated_posterior(self) -> None:
        case = programs.vae(num=30)
        report = kl_by_dimension(*case[:2], *case.args)
        other = aggregated_posterior(*case[:2], *case.args, num_samples=100)
        assert abs(report.mean - other.kl) < 4 * other.kl_error


def test_refuses_a_latent_that_the_guide_does_not_draw() -> None:
    case = programs.mixture(enumerate_in_model=True)
    with pytest.raises(ValueError, match=r"does not draw 'y', on which the prior of \['z'\] may"):
        kl_by_dimension(case.model, case.guide, *case.args)


def test_refuses_a_point_mass() -> None:
    case = pair(dist.Delta(LOCS[:, 0]), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="draws 'z' as a point mass, which has no density"):
        kl_by_dimension(case.model, case.guide)


def test_refuses_the_draws_of_a_flow() -> None:
    case = programs.vae()
    guide = TraceHamiltonian_ELBO(2, 0.1, learn=False).refine(case.model, case.guide)
    with pytest.raises(ValueError, match="draws 'z' as a point mass, which has no density"):
        kl_by_dimension(case.model, guide, *case.args)


def test_refuses_a_single_draw() -> None:
    case = programs.vae()
    with pytest.raises(ValueError, match="num_samples >= 2; got 1"):
        kl_by_dimension(case.model, case.guide, *case.args, num_samples=1)

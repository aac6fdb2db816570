"""Evidence: what the weights tell of their estimate, and warnings where it must not be believed."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.evidence import Evidence, log_evidence
from tests.pyro_infovae.evidence_programs import linear_gaussian, run


class TestReliability:
    def test_a_bad_guide_is_told(self) -> None:
        """A guide of a third of the posterior's scale: its weights have no variance."""
        case, _ = linear_gaussian(guide_scale=0.3)
        with pytest.warns(UserWarning, match=r"k > 0\.7 in \d of 8 rows.*do not believe") as record:
            result = run(case)
        assert len(record) == 1
        assert (result.pareto_k > 0.7).any()

    def test_a_good_guide_is_not(self) -> None:
        case, _ = linear_gaussian(guide_scale=1.6)
        assert (run(case).pareto_k < 0.5).all()

    def test_an_exact_guide(self) -> None:
        """Equal weights have no tail: the evidence of a single draw is exact."""
        x = torch.tensor([0.5, -1.0])

        def model() -> None:
            with pyro.plate("data", 2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with pyro.plate("data", 2):
                pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

        result = log_evidence(model, guide, num_samples=100)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        torch.testing.assert_close(result.log_evidence, exact)
        torch.testing.assert_close(result.effective_sample_size, torch.full((2,), 100.0))
        torch.testing.assert_close(result.standard_error, torch.zeros(2), rtol=0, atol=1e-8)
        assert (result.pareto_k == 0).all()

    def test_weights_that_are_all_zero_or_nan(self) -> None:
        log_weights = torch.randn(100, 3)
        log_weights[:, 0] = -math.inf
        log_weights[7, 1] = math.nan
        result = Evidence(log_weights)
        assert result.log_evidence[0] == -math.inf
        assert result.pareto_k[0] == math.inf
        assert result.log_evidence[1].isnan()
        assert result.pareto_k[1].isnan()
        assert result.log_evidence[2].isfinite()

    def test_a_flow_that_diverges_is_told(self) -> None:
        def model() -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal((3 * z).exp(), 1e-3), obs=torch.ones(3))

        def guide() -> None:
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

        elbo = TraceHamiltonian_ELBO(10, 0.4, learn=False)
        with pytest.warns(UserWarning, match=r"nan in 3 of 3 rows.*step_size"):
            result = log_evidence(model, guide, num_samples=50, elbo=elbo)
        assert result.log_evidence.isnan().all()

    @pytest.mark.parametrize("num_samples", [30, 1000])
    def test_pareto_k_is_arvizs(self, num_samples: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arviz = pytest.importorskip("arviz", exc_type=ImportError)
            log_weights = torch.randn(num_samples, 6) * torch.linspace(0.2, 4.0, 6)
            _, expected = arviz.psislw(log_weights.T.numpy())
        result = Evidence(log_weights)
        torch.testing.assert_close(result.pareto_k, torch.as_tensor(expected))

    def test_the_moments_of_the_weights(self) -> None:
        """Against the definitions: ESS = (Σw)² / Σw², SE of log mean = sd(w) / (√S mean(w))."""
        result = Evidence(torch.randn(200, 4) - 1000.0)
        weights = (result.log_weights + 1000.0).exp()
        size = weights.sum(0) ** 2 / (weights**2).sum(0)
        torch.testing.assert_close(result.effective_sample_size, size)
        error = weights.std(0) / (math.sqrt(200) * weights.mean(0))
        torch.testing.assert_close(result.standard_error, error)
        torch.testing.assert_close(result.log_evidence, weights.mean(0).log() - 1000.0)

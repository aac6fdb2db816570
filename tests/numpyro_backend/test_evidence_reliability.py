"""Evidence: what the weights tell of their estimate, and warnings where it must not be believed."""

from __future__ import annotations

import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_backend._diagnostics.evidence import Evidence, log_evidence
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from tests.numpyro_backend.evidence_programs import linear_gaussian, run
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


@pytest.fixture
def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", exc_type=ImportError)


class TestReliability:
    @pytest.mark.usefixtures("arviz")
    def test_a_bad_guide_is_told(self) -> None:
        """A guide of a third of the posterior's scale: its weights have no variance."""
        case, _ = linear_gaussian(guide_scale=0.3)
        with pytest.warns(UserWarning, match=r"k > 0\.7 in \d of 8 rows.*do not believe") as record:
            result = log_evidence(jax.random.key(0), {}, *case[:2], *case.args, num_samples=4000)
        assert len(record) == 1
        assert record[0].filename == __file__, "it points at the caller"
        assert (result.pareto_k > 0.7).any()

    @pytest.mark.usefixtures("arviz")
    def test_a_good_guide_is_not(self) -> None:
        case, _ = linear_gaussian(guide_scale=1.6)
        assert (run(case).pareto_k < 0.5).all()

    def test_without_arviz_there_is_no_telling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "arviz", None)
        case, _ = linear_gaussian(guide_scale=0.3)
        result = run(case, num_samples=50)
        with pytest.raises(ImportError, match=r"pareto_k needs ArviZ.*pyro-infovae\[arviz\]"):
            _ = result.pareto_k

    def test_an_exact_guide(self) -> None:
        """Equal weights have no tail: the evidence of a single draw is exact."""
        x = jnp.array([0.5, -1.0])

        def model() -> None:
            with numpyro.plate("data", 2):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with numpyro.plate("data", 2):
                numpyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

        result = run(Programs(model, guide, ()), num_samples=100)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        np.testing.assert_allclose(result.log_evidence, exact, rtol=1e-9)
        np.testing.assert_allclose(result.effective_sample_size, 100.0)
        np.testing.assert_allclose(result.standard_error, 0, atol=1e-8)
        assert (result.pareto_k == 0).all()

    def test_weights_that_are_all_zero_or_nan(self) -> None:
        log_weights = np.random.default_rng(0).normal(size=(100, 3))
        log_weights[:, 0] = -math.inf
        log_weights[7, 1] = math.nan
        result = Evidence(log_weights)
        assert result.log_evidence[0] == -math.inf
        assert result.pareto_k[0] == math.inf
        assert np.isnan(result.log_evidence[1])
        assert np.isnan(result.pareto_k[1])
        assert np.isfinite(result.log_evidence[2])
        assert np.isfinite(result.pareto_k[2])

    def test_a_flow_that_diverges_is_told(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(jnp.exp(3 * z), 1e-3), obs=jnp.ones(3))

        def guide() -> None:
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))

        elbo = TraceHamiltonian_ELBO(10, 0.4, learn=False)
        with pytest.warns(UserWarning, match=r"nan in 3 of 3 rows.*step_size"):
            result = run(Programs(model, guide, ()), num_samples=50, elbo=elbo)
        assert np.isnan(result.log_evidence).all()

    @pytest.mark.parametrize("num_samples", [30, 1000])
    def test_pareto_k_is_arvizs(self, num_samples: int, arviz: Any) -> None:
        rng = np.random.default_rng(0)
        log_weights = rng.normal(size=(num_samples, 6)) * np.linspace(0.2, 4.0, 6)
        _, expected = arviz.psislw(log_weights.T)
        result = Evidence(log_weights.reshape(num_samples, 2, 3))
        np.testing.assert_allclose(result.pareto_k, expected.reshape(2, 3), rtol=1e-12)

    def test_pareto_k_is_that_of_arviz_since_1_0(
        self, arviz: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its function has moved, and takes what loo has: negative log weights."""

        def psislw(log_likelihoods: np.ndarray) -> Any:
            largest = np.sort(-log_likelihoods)[-len(log_likelihoods) // 5 :]
            if len(largest) < 5 or np.ptp(largest) == 0:
                raise ValueError("no tail")
            return arviz.psislw(-log_likelihoods)

        log_weights = np.random.default_rng(0).normal(size=(100, 3)) * np.array([0.5, 1.0, 3.0])
        expected = Evidence(log_weights).pareto_k
        equal = np.repeat([[-3.0], [0.0]], [80, 20], axis=0)
        base = SimpleNamespace(array_stats=SimpleNamespace(psislw=psislw))
        monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "arviz_stats", SimpleNamespace(base=base))
        monkeypatch.setitem(sys.modules, "arviz_stats.base", base)
        np.testing.assert_array_equal(Evidence(log_weights).pareto_k, expected)
        assert Evidence(equal).pareto_k == 0
        assert (Evidence(log_weights[:20]).pareto_k == math.inf).all()

    def test_the_moments_of_the_weights(self) -> None:
        """Against the definitions: ESS = (Σw)² / Σw², SE of log mean = sd(w) / (√S mean(w))."""
        log_weights = np.random.default_rng(0).normal(size=(200, 4))
        result = Evidence(log_weights - 1000.0)
        weights = np.exp(log_weights)
        size = weights.sum(0) ** 2 / (weights**2).sum(0)
        np.testing.assert_allclose(result.effective_sample_size, size)
        error = weights.std(0, ddof=1) / (math.sqrt(200) * weights.mean(0))
        np.testing.assert_allclose(result.standard_error, error)
        np.testing.assert_allclose(result.log_evidence, np.log(weights.mean(0)) - 1000.0)

"""log_evidence: runs in chunks, arguments, and parameters left alone."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.evidence import log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.evidence_programs import NOISE, WEIGHT, assert_exact, linear_gaussian, run
from tests.pyro_infovae.param_store import assert_untouched


class TestChunks:
    def test_the_same_draws_give_the_same_result(self) -> None:
        """Multiples of 16 numbers come from the generator alike in one chunk and in several."""
        case, _ = linear_gaussian(num=8)
        results = []
        for chunk_size in (None, 64, 100, 1):
            pyro.set_rng_seed(2)
            results.append(run(case, num_samples=128, chunk_size=chunk_size).log_weights)
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])

    @pytest.mark.filterwarnings("ignore:log_evidence")
    @pytest.mark.parametrize(
        ("features", "chunk_size", "runs"),
        [(1, 100, 4), (1, 390, 2), (1, None, 1), (10**5, None, 2)],
    )
    def test_memory_is_bounded(self, features: int, chunk_size: int | None, runs: int) -> None:
        """At 20 · 10⁵ numbers a draw, 2²³ numbers hold 4 draws."""
        calls = []
        x = torch.zeros(20, features)
        num = 6 if features > 1 else 400

        def model() -> None:
            with pyro.plate("data", 20):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                loc = z.unsqueeze(-1).expand(*z.shape, features) / features
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        def guide() -> None:
            calls.append(1)
            with pyro.plate("data", 20):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        result = log_evidence(model, guide, num_samples=num, chunk_size=chunk_size)
        assert result.log_weights.shape == (num, 20)
        assert len(calls) == 1 + runs, "one run looks at the plates"

    def test_a_program_that_cannot_be_vectorised(self) -> None:
        case, exact = linear_gaussian(num=2)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                loc = torch.stack([WEIGHT @ row for row in z.reshape(2, 2)])
                pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)

        with pytest.raises(RuntimeError) as error:
            log_evidence(model, case.guide, *case.args, num_samples=100)
        assert "chunk_size=1" in error.value.__notes__[0]
        result = log_evidence(model, case.guide, *case.args, num_samples=1000, chunk_size=1)
        assert_exact(result, exact)


@pytest.mark.filterwarnings("ignore:log_evidence")
class TestSideEffects:
    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(2, 0.1)])
    def test_the_param_store_is_untouched(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        case = programs.vae()
        assert_untouched(
            case, lambda: log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo)
        )

    def test_the_result_has_no_graph(self) -> None:
        case = programs.vae()
        elbo = TraceHamiltonian_ELBO(2, 0.1)
        result = log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo)
        assert not result.log_weights.requires_grad

    def test_keyword_arguments_reach_the_programs(self) -> None:
        case, exact = linear_gaussian()
        x = case.args[0]
        model: Callable[..., None] = lambda *, rows: case.model(rows)  # noqa: E731
        guide: Callable[..., None] = lambda *, rows: case.guide(rows)  # noqa: E731
        assert_exact(log_evidence(model, guide, rows=x, num_samples=2000), exact)

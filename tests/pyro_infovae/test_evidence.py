"""log_evidence: the evidence of every row, where it is known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.evidence import log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.evidence_programs import (
    FLOW,
    NOISE,
    WEIGHT,
    assert_exact,
    linear_gaussian,
    run,
)
from tests.pyro_infovae.programs import Programs


class TestRows:
    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_every_row_has_its_evidence(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        case, exact = linear_gaussian()
        result = run(case, elbo=elbo)
        assert_exact(result, exact)
        assert result.total.item() == pytest.approx(result.log_evidence.sum().item())

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_the_refined_guide_has_the_better_weights(self) -> None:
        """A correlated posterior: the best diagonal guide against one trained with its flow."""
        x, direction, noise = programs.data(40)[:, 0], torch.tensor([1.0, 0.9]), 0.5
        precision = torch.eye(2) + torch.outer(direction, direction) / noise**2

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ direction, noise), obs=x)

        def guide(x: Tensor) -> None:
            slope = torch.linalg.solve(precision, direction) / noise**2
            best = precision.diagonal().rsqrt()
            scale = pyro.param("scale", best, constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, None] * slope, scale).to_event(1))

        plain = log_evidence(model, guide, x, num_samples=5000)
        particles = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 1}
        elbo = TraceHamiltonian_ELBO(3, 0.5, tempering="none", max_step_size=1.0, **particles)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
        for _ in range(60):
            svi.step(x)
        refined = log_evidence(model, guide, x, num_samples=5000, elbo=elbo)
        exact = dist.Normal(0.0, (direction @ direction + noise**2).sqrt()).log_prob(x)
        assert_exact(refined, exact, largest_error=0.2)
        assert refined.effective_sample_size.mean() > 1.5 * plain.effective_sample_size.mean()
        assert refined.pareto_k.mean() < plain.pareto_k.mean() - 0.05

    def test_equals_a_loop_over_draws(self) -> None:
        """The same draws, their weights written out."""
        case, _ = linear_gaussian(num=3)
        result = run(case, num_samples=50, chunk_size=1)
        pyro.set_rng_seed(0)
        poutine.trace(case.guide).get_trace(*case.args)  # the run that looks at the plates
        standard = dist.Normal(0.0, 1.0)
        for weights in result.log_weights:
            trace = poutine.trace(case.guide).get_trace(*case.args)
            z, q = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
            log_prior, log_q = standard.log_prob(z).sum(-1), q.log_prob(z)
            log_likelihood = dist.Normal(z @ WEIGHT.T, NOISE).log_prob(case.args[0]).sum(-1)
            torch.testing.assert_close(weights, log_likelihood + log_prior - log_q)
        mean = result.log_weights.exp().mean(0).log()
        torch.testing.assert_close(result.log_evidence, mean)

    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_masked_rows_are_0(self, elbo: TraceHamiltonian_ELBO | None) -> None:
        mask = torch.arange(8) % 3 != 0
        case, exact = linear_gaussian(mask=mask)
        result = run(case, elbo=elbo)
        torch.testing.assert_close(result.log_evidence[~mask], torch.zeros(3))
        assert (result.standard_error[~mask] == 0).all()
        assert (result.pareto_k[~mask] == 0).all()
        torch.testing.assert_close(result.effective_sample_size[~mask], torch.full((3,), 4000.0))
        deviation = (result.log_evidence - exact).abs() / result.standard_error
        assert (deviation[mask] < 4).all()

    @pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(**FLOW)])
    def test_a_minibatch_has_the_evidence_of_its_rows(
        self, elbo: TraceHamiltonian_ELBO | None
    ) -> None:
        case, exact = linear_gaussian(num=16, total=1000, batch=5)
        assert_exact(run(case, elbo=elbo), exact[:5])

    def test_a_random_minibatch_is_drawn_once(self) -> None:
        """Else each chunk would average over other rows."""
        x = torch.linspace(-3.0, 3.0, 20)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 20, subsample_size=4) as index:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 20, subsample_size=4) as index:
                pyro.sample("z", dist.Normal(x[index] / 2, math.sqrt(0.5)))

        result = log_evidence(model, guide, x, num_samples=60, chunk_size=10)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        assert torch.allclose(result.log_weights, result.log_evidence), "weights of an exact guide"
        for row in result.log_evidence:
            assert torch.isclose(exact, row).any()

    def test_a_users_scale_is_left_out(self) -> None:
        case, exact = linear_gaussian()
        model, guide = (poutine.scale(program, scale=0.2) for program in case[:2])
        assert_exact(run(Programs(model, guide, case.args)), exact)

    def test_float32(self) -> None:
        torch.set_default_dtype(torch.float32)
        case, exact = linear_gaussian()
        result = log_evidence(case.model, case.guide, case.args[0], num_samples=1000)
        assert_exact(result, exact)

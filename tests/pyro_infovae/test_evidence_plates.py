"""log_evidence: which plates become rows, and what is summed out or joined."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.evidence import log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.evidence_programs import NOISE, WEIGHT, assert_exact, linear_gaussian, run
from tests.pyro_infovae.programs import Programs


class TestPlates:
    def test_inner_plates_are_summed_out(self) -> None:
        """Groups of items: outer_g ~ N(0, 1), z_ig ~ N(outer_g, 1), x_ig ~ N(z_ig, 1)."""
        items, groups = 3, 4
        x = programs.data(items, groups)

        def model() -> None:
            with pyro.plate("groups", groups, dim=-1):
                outer = pyro.sample("outer", dist.Normal(0.0, 1.0))
                with pyro.plate("items", items, dim=-2):
                    z = pyro.sample("z", dist.Normal(outer, 1.0))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with pyro.plate("groups", groups, dim=-1):
                outer = pyro.sample("outer", dist.Normal(x.sum(0) / 5, 0.8))
                with pyro.plate("items", items, dim=-2):
                    pyro.sample("z", dist.Normal((x + outer) / 2, 0.8))

        covariance = torch.ones(items, items) + 2 * torch.eye(items)
        exact = dist.MultivariateNormal(torch.zeros(items), covariance).log_prob(x.T)
        assert_exact(log_evidence(model, guide, num_samples=10_000), exact)
        elbo = TraceHamiltonian_ELBO(3, 0.1, beta_0=0.8, learn=False)
        assert_exact(log_evidence(model, guide, num_samples=10_000, elbo=elbo), exact)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_rows_in_two_plates_keep_their_shape(self) -> None:
        case = programs.sequences()
        result = run(case, num_samples=100)
        assert result.log_evidence.shape == (5, 4)
        padding = result.log_evidence == 0
        assert padding.sum() == 7
        assert padding[3, 1]
        assert not padding[2, 1]

    def test_a_global_latent_gives_one_evidence_of_the_data_set(self) -> None:
        case = programs.hierarchical(num=3)
        x = case.args[0]
        block = (torch.ones(3, 3) + torch.eye(3)).repeat_interleave(3, 0).repeat_interleave(3, 1)
        exact = dist.MultivariateNormal(torch.zeros(9), block + torch.eye(9)).log_prob(
            x.reshape(-1)
        )
        guide = AutoNormal(case.model, init_scale=0.6)
        guide(x)
        # Its locations start at the prior's median; the posterior's are not far.
        result = log_evidence(case.model, guide, x, num_samples=40_000)
        assert result.log_evidence.shape == ()
        assert_exact(result, exact)
        assert result.total == result.log_evidence
        elbo = TraceHamiltonian_ELBO(3, 0.15, learn=False)
        assert_exact(log_evidence(case.model, guide, x, num_samples=20_000, elbo=elbo), exact)

    def test_a_guide_that_is_not_factorised_gives_one_evidence(self) -> None:
        case, exact = linear_gaussian(num=2)
        posterior = (torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2).inverse()
        mean = case.args[0] @ WEIGHT @ posterior / NOISE**2
        start = init_to_value(values={"z": mean})
        guide = AutoMultivariateNormal(case.model, init_loc_fn=start, init_scale=0.6)
        result = log_evidence(case.model, guide, *case.args, num_samples=10_000)
        assert result.log_evidence.shape == ()
        assert_exact(result, exact.sum())

    def test_a_sequential_plate(self) -> None:
        x = torch.tensor([0.3, -1.0, 0.8])

        def model() -> None:
            for i in pyro.plate("data", 3):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

        def guide() -> None:
            for i in pyro.plate("data", 3):
                pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 0.8))

        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum()
        assert_exact(log_evidence(model, guide, num_samples=2000), exact)

    def test_sites_without_a_density_are_no_rows_fault(self) -> None:
        case, exact = linear_gaussian()

        def model(x: Tensor) -> None:
            pyro.deterministic("answer", torch.tensor(42.0))
            case.model(x)
            with pyro.plate("again", len(x)):
                pyro.factor("bonus", torch.zeros(len(x)))

        result = run(Programs(model, case.guide, case.args))
        assert result.log_evidence.shape == (), "the factor is in another plate"
        assert_exact(result, exact.sum())

        def without_factor(x: Tensor) -> None:
            pyro.deterministic("answer", torch.tensor(42.0))
            case.model(x)

        assert_exact(run(Programs(without_factor, case.guide, case.args)), exact)

    def test_discrete_latents(self) -> None:
        x = torch.tensor([0.1, 1.2, 2.2])
        prior = torch.tensor([0.2, 0.3, 0.5])

        def model() -> None:
            with pyro.plate("data", 3):
                y = pyro.sample("y", dist.Categorical(prior))
                pyro.sample("x", dist.Normal(y.to(x), 0.7), obs=x)

        def guide() -> None:
            with pyro.plate("data", 3):
                pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.4, 0.3])))

        components = dist.Normal(torch.arange(3.0), 0.7).log_prob(x[:, None])
        exact = (components.exp() * prior).sum(-1).log()
        result = log_evidence(model, guide, num_samples=4000)
        assert_exact(result, exact)

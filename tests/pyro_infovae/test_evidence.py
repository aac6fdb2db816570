"""log_evidence of Pyro's own guides and plates, in chunks, with the param store left alone."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    init_to_value,
)
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.diagnostics import log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.param_store import assert_untouched
from tests.pyro_infovae.programs import Programs
from tests.questions.asking import HALVES, data
from tests.questions.evidence import (
    NOISE,
    POSTERIOR,
    WEIGHT,
    assert_exact,
    exact_evidence,
    linear_gaussian,
    run,
)

HALF = HALVES["pyro"]


@pytest.mark.filterwarnings("ignore:log_evidence")
def test_the_refined_guide_has_the_better_weights() -> None:
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
    elbo = TraceHamiltonian_ELBO(
        3, 0.5, tempering="none", max_step_size=1.0, **particles, path="posterior"
    )
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    for _ in range(60):
        svi.step(x)
    refined = log_evidence(model, guide, x, num_samples=5000, elbo=elbo)
    exact = dist.Normal(0.0, (direction @ direction + noise**2).sqrt()).log_prob(x)
    assert_exact(refined, exact, largest_error=0.2)
    assert refined.effective_sample_size.mean() > 1.5 * plain.effective_sample_size.mean()
    assert refined.pareto_k.mean() < plain.pareto_k.mean() - 0.05


def test_equals_a_loop_over_draws() -> None:
    """The same draws, their weights written out."""
    case, x = linear_gaussian(HALF, num=3), HALF.array(data(3))
    result = run(HALF, case, num_samples=50, chunk_size=1)
    pyro.set_rng_seed(0)
    poutine.trace(case.guide).get_trace()  # the run that looks at the plates
    standard, weight = dist.Normal(0.0, 1.0), HALF.array(WEIGHT.T)
    for weights in result.log_weights:
        trace = poutine.trace(case.guide).get_trace()
        z, q = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
        log_prior, log_q = standard.log_prob(z).sum(-1), q.log_prob(z)
        log_likelihood = dist.Normal(z @ weight, NOISE).log_prob(x).sum(-1)
        torch.testing.assert_close(weights, log_likelihood + log_prior - log_q)
    mean = result.log_weights.exp().mean(0).log()
    torch.testing.assert_close(result.log_evidence, mean)


def test_a_global_latent_gives_one_evidence_of_the_data_set() -> None:
    case = programs.hierarchical(num=3)
    x = case.args[0]
    block = (torch.ones(3, 3) + torch.eye(3)).repeat_interleave(3, 0).repeat_interleave(3, 1)
    exact = dist.MultivariateNormal(torch.zeros(9), block + torch.eye(9)).log_prob(x.reshape(-1))
    guide = AutoNormal(case.model, init_scale=0.6)
    guide(x)
    # Its locations start at the prior's median; the posterior's are not far.
    result = log_evidence(case.model, guide, x, num_samples=40_000)
    assert result.log_evidence.shape == ()
    assert_exact(result, exact)
    assert result.total == result.log_evidence
    elbo = TraceHamiltonian_ELBO(3, 0.15, learn=False)
    assert_exact(log_evidence(case.model, guide, x, num_samples=20_000, elbo=elbo), exact)


def test_a_guide_that_is_not_factorised_gives_one_evidence() -> None:
    model = linear_gaussian(HALF, num=2).model
    mean = HALF.array(data(2) @ WEIGHT @ POSTERIOR / NOISE**2)
    start = init_to_value(values={"z": mean})
    guide = AutoMultivariateNormal(model, init_loc_fn=start, init_scale=0.6)
    result = log_evidence(model, guide, num_samples=10_000)
    assert result.log_evidence.shape == ()
    assert_exact(result, exact_evidence(2).sum())


def test_a_sequential_plate() -> None:
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


@pytest.mark.filterwarnings("ignore:log_evidence")
@pytest.mark.parametrize(
    ("features", "chunk_size", "runs"),
    [(1, 100, 4), (1, 390, 2), (1, None, 1), (10**5, None, 2)],
)
def test_memory_is_bounded(features: int, chunk_size: int | None, runs: int) -> None:
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


def test_a_program_that_cannot_be_vectorised() -> None:
    guide = linear_gaussian(HALF, num=2).guide
    x, weight = HALF.array(data(2)), HALF.array(WEIGHT)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.stack([weight @ row for row in z.reshape(2, 2)])
            pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)

    with pytest.raises(RuntimeError) as error:
        log_evidence(model, guide, num_samples=100)
    assert "chunk_size=1" in error.value.__notes__[0]
    result = log_evidence(model, guide, num_samples=500, chunk_size=1)
    assert_exact(result, exact_evidence(2))


@pytest.mark.filterwarnings("ignore:log_evidence")
@pytest.mark.parametrize("elbo", [None, TraceHamiltonian_ELBO(2, 0.1)])
def test_the_param_store_is_untouched(elbo: TraceHamiltonian_ELBO | None) -> None:
    case = programs.vae()
    assert_untouched(case, lambda: log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo))


@pytest.mark.filterwarnings("ignore:log_evidence")
def test_the_result_has_no_graph() -> None:
    case = programs.vae()
    elbo = TraceHamiltonian_ELBO(2, 0.1)
    result = log_evidence(*case[:2], *case.args, num_samples=30, elbo=elbo)
    assert not result.log_weights.requires_grad


def refused(case: Programs, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        log_evidence(case.model, case.guide, *case.args)


def test_refuses_a_sequential_minibatch() -> None:
    def model() -> None:
        for i in pyro.plate("data", 12, subsample_size=1):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    def guide() -> None:
        for i in pyro.plate("data", 12, subsample_size=1):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    refused(Programs(model, guide, ()), "plate 'data' is subsampled, but it is sequential")


def test_refuses_guides_without_importance_weights() -> None:
    model, _, args = programs.vae()
    refused(Programs(model, AutoDelta(model), args), "'z' is a point mass.*AutoNormal")
    mixture = programs.mixture(enumerate_in_model=True)
    mixture = mixture._replace(model=config_enumerate(mixture.model))
    refused(mixture, "'y' is a latent of the model that the guide does not draw")
    messenger = AutoNormalMessenger(model)
    messenger(*args)
    with pytest.raises(NotImplementedError, match=r"got AutoNormalMessenger, .*AutoGuide"):
        log_evidence(model, messenger, *args)

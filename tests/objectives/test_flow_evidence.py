"""TraceHamiltonian_ELBO: importance weights that average to the evidence, by many draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_pyro, slow_in_numpyro
from tests.objectives.flows import (
    HIERARCHY,
    NEAR,
    X,
    assert_evidence,
    fixed,
    linear_gaussian,
    log_normal,
    normal_hierarchy,
    warm,
)

TEMPERINGS = ["quadratic", "free", "none", "constant", warm]


def flow_of(half: Half, seed: int, *, num_steps: int, beta_0: float) -> Any:
    """Over five seeds, every tempering and step sizes of every shape."""
    step_size: Any = 0.15
    per_step = seed % 4 == 2
    if per_step:
        step_size = half.xp.asarray(np.linspace(0.05, 0.2, num_steps))
    elif seed % 4:
        step_size = half.xp.asarray(np.linspace(0.08, 0.2, 1 + seed % 4))
    tempering = TEMPERINGS[seed % 5]
    return fixed(half, num_steps, step_size, beta_0=beta_0, tempering=tempering, per_step=per_step)


@in_both("seed", range(5), quick=[2])
def test_linear_gaussian(half: Half, seed: int) -> None:
    num_steps, beta_0 = [(1, 0.3), (3, 0.7), (10, 0.3), (3, 0.6), (10, 1.0)][seed]
    case, evidence = linear_gaussian(half, seed)
    elbo = flow_of(half, seed, num_steps=num_steps, beta_0=beta_0)
    assert_evidence(half, case, evidence, elbo)


@pytest.mark.slow
@in_pyro
@pytest.mark.parametrize("seed", range(30))
def test_many_linear_gaussians(half: Half, seed: int) -> None:
    case, evidence = linear_gaussian(half, seed)
    num_steps, beta_0 = [1, 3, 10][seed % 3], [0.3, 0.7, 1.0][seed // 3 % 3]
    elbo = flow_of(half, seed, num_steps=num_steps, beta_0=beta_0)
    assert_evidence(half, case, evidence, elbo, draws=40_000)


def test_gamma_poisson(half: Half) -> None:
    """Constrained support: rate ~ Gamma(3, 2), counts ~ Poisson(rate)."""
    counts = np.array([2.0, 4.0, 1.0])
    three = half.xp.ones(3)

    def model() -> None:
        rate = half.sample("rate", half.dist.Gamma(3.0, 2.0))
        poisson = half.dist.Poisson(rate[..., None] * three).to_event(1)
        half.sample("x", poisson, obs=half.xp.asarray(counts))

    def guide() -> None:
        half.sample("rate", half.dist.LogNormal(0.3, 0.6))

    total, num = counts.sum(), len(counts)
    evidence = (
        3 * math.log(2)
        - math.lgamma(3)
        + math.lgamma(3 + total)
        - (3 + total) * math.log(2 + num)
        - sum(math.lgamma(count + 1) for count in counts)
    )
    for tempering in ["free"] if half.compiles else ["free", "quadratic", warm]:
        assert_evidence(half, Case(model, guide), evidence, fixed(half, 4, tempering=tempering))


@in_both("kind", ["AutoNormal", "AutoMultivariateNormal"], quick=[])
def test_hierarchy_with_an_automatic_guide(half: Half, kind: str) -> None:
    """With a constrained latent: v = exp θ; wider than the posterior, so that weights vary."""

    def model() -> None:
        v = half.sample("v", half.dist.LogNormal(0.0, 1.0))
        with half.plate("data", 3):
            z = half.sample("z", half.dist.Normal(half.xp.log(v), 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=half.xp.asarray(X))

    start = half.init_to({"v": np.array(1.2), "z": (X + 0.2) / 2})
    guide = half.auto(kind, model, init_scale=0.7, init_loc_fn=start)
    assert_evidence(half, Case(model, guide), HIERARCHY)


@slow_in_numpyro
def test_simplex_support(half: Half) -> None:
    """Unconstrained and constrained values differ in shape: a Dirichlet-multinomial."""
    counts, concentration = np.array([3.0, 1.0, 2.0]), np.array([2.0, 1.0, 1.5])

    def model() -> None:
        p = half.sample("p", half.dist.Dirichlet(half.xp.asarray(concentration)))
        half.sample("x", half.dist.Multinomial(6, p), obs=half.xp.asarray(counts))

    def guide() -> None:
        half.sample("p", half.dist.Dirichlet(half.xp.asarray(np.array([3.0, 2.0, 3.0]))))

    evidence = math.lgamma(7) - sum(math.lgamma(count + 1) for count in counts)
    evidence += math.lgamma(4.5) - math.lgamma(10.5)
    evidence += sum(
        math.lgamma(a + count) - math.lgamma(a)
        for a, count in zip(concentration, counts, strict=True)
    )
    elbo = fixed(half, step_size=half.xp.asarray(np.array([0.1, 0.2])))
    assert_evidence(half, Case(model, guide), evidence, elbo)


@in_both("sites", ["z", "theta"], quick=["z"])
def test_some_latents_stay(half: Half, sites: Any) -> None:
    def guide() -> None:
        theta = half.sample("theta", half.dist.Normal(0.2, 0.9))
        with half.plate("data", 3):
            half.sample("z", half.dist.Normal(theta + 0.2, 0.9))

    case = Case(normal_hierarchy(half), guide)
    assert_evidence(half, case, HIERARCHY, fixed(half, sites=sites))


@slow_in_numpyro
def test_a_discrete_latent_that_stays(half: Half) -> None:
    """y ~ Bernoulli(0.4), z ~ N(y, 1), x ~ N(z, 1)."""

    def model() -> None:
        y = half.sample("y", half.dist.Bernoulli(0.4))
        z = half.sample("z", half.dist.Normal(y, 1.0))
        half.sample("x", half.dist.Normal(z, 1.0), obs=half.xp.asarray(0.8))

    def guide() -> None:
        y = half.sample("y", half.dist.Bernoulli(0.5))
        half.sample("z", half.dist.Normal(0.3 + 0.6 * y, 0.8))

    likelihoods = (math.exp(log_normal(np.array([0.8 - y]), 2 * np.eye(1))) for y in (0, 1))
    evidence = math.log(sum(w * p for w, p in zip((0.6, 0.4), likelihoods, strict=True)))
    assert_evidence(half, Case(model, guide), evidence, fixed(half, sites="z"))


@slow_in_numpyro
def test_prefactors_leave_the_refined_guide_alone(half: Half) -> None:
    """They weight the objective; the refined guide's density is that of its draws."""
    model = normal_hierarchy(half)
    case = Case(
        model, half.auto("AutoNormal", model, init_scale=0.8, init_loc_fn=half.init_to(NEAR))
    )
    weighted = fixed(half, logp_prefactor=(1.0, 2.0, 2.0), logq_prefactor=(0.5, 1.0, 1.0))
    assert_evidence(half, case, HIERARCHY, weighted)

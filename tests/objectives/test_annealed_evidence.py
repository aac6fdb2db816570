"""An annealed flow: importance weights that average to the evidence, by many draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_pyro, slow_in_numpyro
from tests.objectives.flows import (
    HIERARCHY,
    X,
    annealed,
    assert_average,
    assert_evidence,
    linear_gaussian,
    log_normal,
    normal_hierarchy,
)


def annealed_of(half: Half, seed: int) -> Any:
    """Over the seeds, every number of steps, persistence, step size and unit of length."""
    return annealed(
        half,
        [1, 4, 8][seed % 3],
        [0.3, 0.5, 0.1, 0.2][seed % 4],
        persistence=[0.7, 0.0, 1.0, 0.4][seed // 3 % 4],
        precondition=["guide", "none"][seed % 2],
    )


@in_both("seed", [0, 4, 5], quick=[4])
def test_linear_gaussian(half: Half, seed: int) -> None:
    case, evidence = linear_gaussian(half, seed)
    assert_evidence(half, case, evidence, annealed_of(half, seed))


@pytest.mark.slow
@in_pyro
@pytest.mark.parametrize("seed", range(30))
def test_many_linear_gaussians(half: Half, seed: int) -> None:
    case, evidence = linear_gaussian(half, seed)
    assert_evidence(half, case, evidence, annealed_of(half, seed), draws=40_000)


GAMMAS = ["LogNormal", "Gamma"]


@in_both("kind", GAMMAS, quick=["Gamma"])
def test_gamma_poisson(half: Half, kind: str) -> None:
    """rate ~ Gamma(3, 2), counts ~ Poisson(rate), from a guide of noise and from one of none."""
    counts = np.array([2.0, 4.0, 1.0])
    three = half.xp.ones(3)

    def model() -> None:
        rate = half.sample("rate", half.dist.Gamma(3.0, 2.0))
        poisson = half.dist.Poisson(rate[..., None] * three).to_event(1)
        half.sample("x", poisson, obs=half.xp.asarray(counts))

    def guide() -> None:
        parameters = half.xp.asarray(np.array([0.3, 0.6] if kind == "LogNormal" else [2.0, 1.2]))
        half.sample("rate", getattr(half.dist, kind)(*parameters))

    total, num = counts.sum(), len(counts)
    evidence = (
        3 * math.log(2)
        - math.lgamma(3)
        + math.lgamma(3 + total)
        - (3 + total) * math.log(2 + num)
        - sum(math.lgamma(count + 1) for count in counts)
    )
    assert_evidence(half, Case(model, guide), evidence, annealed(half))


@in_both("precondition", ["guide", "none"], quick=[])
def test_simplex_support(half: Half, precondition: str) -> None:
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
    elbo = annealed(half, step_size=half.xp.asarray([0.2, 0.3]), precondition=precondition)
    assert_evidence(half, Case(model, guide), evidence, elbo)


@in_both("steps", [1, 4, 8], quick=[4])
def test_a_latent_that_depends_on_another(half: Half, steps: int) -> None:
    """The guide runs again wherever the flow moves θ."""

    def guide() -> None:
        theta = half.sample("theta", half.dist.Normal(0.2, 0.9))
        with half.plate("data", 3):
            half.sample("z", half.dist.Normal(theta / 2 + 0.2, 0.7 + 0.1 * theta**2))

    elbo = annealed(half, steps, precondition="none" if steps == 8 else "guide")
    assert_evidence(half, Case(normal_hierarchy(half), guide), HIERARCHY, elbo)


@slow_in_numpyro
def test_a_support_that_depends_on_another_latent(half: Half) -> None:
    """a ~ LogNormal, b ~ Uniform(0, a), x ~ N(a + b, 1), by quadrature."""

    def model() -> None:
        a = half.sample("a", half.dist.Gamma(half.xp.asarray(2.0), 1.0))
        b = half.sample("b", half.dist.Uniform(0.0, a))
        half.sample("x", half.dist.Normal(a + b, 1.0), obs=half.xp.asarray(1.2))

    def guide() -> None:
        a = half.sample("a", half.dist.LogNormal(0.1, 0.9))
        half.sample("b", half.dist.Uniform(0.0, a))

    a = np.linspace(0.0, 25.0, 5001)[1:, None]
    fractions = (np.arange(200) + 0.5) / 200
    likelihood = np.exp(-0.5 * (1.2 - a * (1 + fractions)) ** 2) / math.sqrt(2 * math.pi)
    evidence = math.log((a * np.exp(-a) * likelihood).mean(1).sum() * 0.005)
    assert_evidence(half, Case(model, guide), evidence, annealed(half))


AUTOMATIC = [
    "AutoNormal",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
]


@in_both("kind", [*AUTOMATIC, "AutoNormal, none"], quick=[])
def test_automatic_guides(half: Half, kind: str) -> None:
    """With a constrained latent: v = exp θ."""

    def model() -> None:
        v = half.sample("v", half.dist.LogNormal(0.0, 1.0))
        with half.plate("data", 3):
            z = half.sample("z", half.dist.Normal(half.xp.log(v), 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=half.xp.asarray(X))

    start = half.init_to({"v": np.array(1.2), "z": (X + 0.2) / 2})
    kind, _, precondition = kind.partition(", ")
    guide = half.auto(kind, model, init_scale=0.7, init_loc_fn=start)
    elbo = annealed(half, precondition=precondition or "guide")
    assert_evidence(half, Case(model, guide), HIERARCHY, elbo)


@pytest.mark.slow
def test_a_guide_that_is_a_flow(half: Half) -> None:
    """In the coordinates of its noise nobody has to invert it."""
    model = normal_hierarchy(half)
    guide = half.auto("AutoIAFNormal", model)
    losses = half.losses([annealed(half, 8, 0.2)], Case(model, guide), count=4_000)[0]
    assert_average(-losses, HIERARCHY)


def test_a_point_mass_made_of_an_auxiliary_site(half: Half) -> None:
    def model() -> None:
        z = half.sample("z", half.dist.LogNormal(0.0, 1.0))
        half.sample("x", half.dist.Normal(half.xp.log(z), 1.0), obs=half.xp.asarray(X[0]))

    def guide() -> None:
        w = half.sample("w", half.dist.Normal(0.1, 0.4), infer={"is_auxiliary": True})
        density = -math.log(2) - 2 * w
        half.sample("z", half.dist.Delta(half.xp.exp(2 * w), log_density=density))

    elbo = annealed(half, step_size=half.xp.asarray([0.3, 0.2, 0.4, 0.1]), per_step=True)
    assert_evidence(half, Case(model, guide), log_normal(X[:1], 2 * np.eye(1)), elbo)


@in_both("sites", ["z", "theta"], quick=[])
def test_some_latents_stay(half: Half, sites: str) -> None:
    def guide() -> None:
        theta = half.sample("theta", half.dist.Normal(0.2, 0.9))
        with half.plate("data", 3):
            half.sample("z", half.dist.Normal(theta + 0.2, 0.9))

    case = Case(normal_hierarchy(half), guide)
    assert_evidence(half, case, HIERARCHY, annealed(half, sites=sites))


@slow_in_numpyro
def test_nested_plates_with_masked_items(half: Half) -> None:
    """a_j ~ N(0, 1), z_ij ~ N(a_j, 1), x_ij ~ N(z_ij, 1), of which some are missing."""
    x = np.random.default_rng(1).normal(size=(3, 2))
    present = np.array([[True, True], [False, True], [True, False]])
    data = half.xp.asarray(x)

    def model() -> None:
        with half.plate("groups", 2):
            a = half.sample("a", half.dist.Normal(0.0, 1.0))
            with half.plate("items", 3, dim=-2), half.mask(present):
                z = half.sample("z", half.dist.Normal(a, 1.0))
                half.sample("x", half.dist.Normal(z, 1.0), obs=data)

    def guide() -> None:
        with half.plate("groups", 2):
            a = half.sample("a", half.dist.Normal(data.mean(0) / 2, 0.8))
            with half.plate("items", 3, dim=-2), half.mask(present):
                half.sample("z", half.dist.Normal((a + data) / 2, 0.9))

    evidence = sum(
        log_normal(x[rows, j], 2 * np.eye(rows.sum()) + 1) for j, rows in enumerate(present.T)
    )
    assert_evidence(half, Case(model, guide), evidence, annealed(half))


@pytest.mark.slow
def test_a_subsampled_plate(half: Half) -> None:
    """Every datum is moved by its own posterior: the loss is that of the minibatch, scaled up."""

    def model() -> None:
        with half.plate("data", 60, index=np.arange(3)):
            z = half.sample("z", half.dist.Normal(0 * half.xp.asarray(X), 1.0))
            half.sample("x", half.dist.Normal(z, 0.5), obs=half.xp.asarray(X))

    def guide() -> None:
        with half.plate("data", 60, index=np.arange(3)):
            half.sample("z", half.dist.Normal(half.xp.asarray(X) / 2, 0.6))

    losses = half.losses([annealed(half)], Case(model, guide), count=2_000)[0]
    assert_average(-losses / 20, log_normal(X, 1.25 * np.eye(3)))

"""TraceHamiltonian_ELBO: importance weights that average to the evidence, by many draws."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import assert_evidence, fixed, log_normal, warm
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class LinearGaussian(NamedTuple):
    programs: Programs
    evidence: float


def linear_gaussian(seed: int) -> LinearGaussian:
    """z ~ N(0, I), x | z ~ N(A z + b, noise), and a bad diagonal guide."""
    rng = np.random.default_rng(seed)
    dim, out = 1 + seed % 4, 2 + seed % 3
    weight, shift, noise = rng.normal(size=(out, dim)), rng.normal(size=out), rng.uniform(0.5, 1.5)
    x = weight @ rng.normal(size=dim) + shift + noise * rng.normal(size=out)
    covariance = weight @ weight.T + noise**2 * np.eye(out)
    precision = np.eye(dim) + weight.T @ weight / noise**2
    mean = np.linalg.solve(precision, weight.T @ (x - shift) / noise**2)
    loc = mean + 0.4 * rng.normal(size=dim)
    scale = np.sqrt(np.diagonal(np.linalg.inv(precision))) * rng.uniform(1.0, 1.4, size=dim)

    def model() -> None:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(weight @ z + shift, noise).to_event(1), obs=x)

    def guide() -> None:
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return LinearGaussian(Programs(model, guide, ()), log_normal(x - shift, covariance))


TEMPERINGS = ["quadratic", "free", "none", "constant", warm]

STEPS = [1, 3, 10, 3, 10]

BETAS = [0.3, 0.7, 0.3, 0.6, 1.0]


def settings(seed: int) -> dict[str, Any]:
    num_steps, dim = STEPS[seed], 1 + seed % 4
    step_size: Any = 0.15
    if seed == 2:
        step_size = np.linspace(0.05, 0.2, num_steps)
    elif seed in (1, 3):
        step_size = np.linspace(0.08, 0.2, dim)
    return {
        "num_steps": num_steps,
        "step_size": step_size,
        "beta_0": BETAS[seed],
        "tempering": TEMPERINGS[seed],
        "per_step": seed == 2,
    }


@pytest.mark.parametrize("seed", range(5))
def test_linear_gaussian(seed: int) -> None:
    case = linear_gaussian(seed)
    assert_evidence(fixed(**settings(seed)), case.programs, case.evidence)


def test_gamma_poisson() -> None:
    """Constrained support: rate ~ Gamma(3, 2), counts ~ Poisson(rate)."""
    counts = np.array([2.0, 4.0, 1.0])

    def model() -> None:
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Poisson(rate), obs=counts)

    def guide() -> None:
        numpyro.sample("rate", dist.LogNormal(0.3, 0.6))

    total, num = counts.sum(), len(counts)
    evidence = (
        3 * math.log(2)
        - math.lgamma(3)
        + math.lgamma(3 + total)
        - (3 + total) * math.log(2 + num)
        - sum(math.lgamma(count + 1) for count in counts)
    )
    assert_evidence(fixed(4, tempering="free"), Programs(model, guide, ()), evidence)


def test_simplex_support() -> None:
    """Unconstrained and constrained values differ in shape: a Dirichlet-multinomial."""
    counts, concentration = np.array([3, 1, 2]), np.array([2.0, 1.0, 1.5])

    def model() -> None:
        p = numpyro.sample("p", dist.Dirichlet(concentration))
        numpyro.sample("x", dist.Multinomial(6, p), obs=counts)

    def guide() -> None:
        numpyro.sample("p", dist.Dirichlet(jnp.array([3.0, 2.0, 3.0])))

    evidence = math.lgamma(7) - sum(math.lgamma(count + 1) for count in counts)
    evidence += math.lgamma(4.5) - math.lgamma(10.5)
    evidence += sum(
        math.lgamma(a + count) - math.lgamma(a)
        for a, count in zip(concentration, counts, strict=True)
    )
    assert_evidence(fixed(step_size=np.array([0.1, 0.2])), Programs(model, guide, ()), evidence)


@pytest.mark.parametrize("sites", [["z"], "theta"])
def test_some_latents_stay(sites: Any) -> None:
    x = programs.data(2, 1)[:, 0]

    def model() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide() -> None:
        theta = numpyro.sample("theta", dist.Normal(0.2, 0.9))
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Normal(theta + 0.2, 0.9))

    exact = log_normal(x, 2 * np.eye(2) + 1)
    assert_evidence(fixed(sites=sites), Programs(model, guide, ()), exact)

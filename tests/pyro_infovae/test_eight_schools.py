"""The refined guide against the exact posterior of the eight schools (Rubin, 1981)."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._core.programs import Program

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def model() -> None:
    effects, errors = torch.tensor(EFFECTS), torch.tensor(ERRORS)
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("effect", dist.Normal(theta, errors), obs=effects)


class Moments(NamedTuple):
    """Means and standard deviations of mu, log tau, and theta of every school."""

    mean: Tensor
    sd: Tensor


def exact_moments() -> Moments:
    """Given tau all is normal, so that a sum over a grid of log tau is left."""
    effects, errors = torch.tensor(EFFECTS), torch.tensor(ERRORS)
    log_tau = torch.linspace(-12.0, 9.0, 4001)[:, None]
    tau = log_tau.exp()
    marginal = errors**2 + tau**2
    mu_variance = 1 / (1 / 25 + (1 / marginal).sum(-1, keepdim=True))
    mu_mean = mu_variance * (effects / marginal).sum(-1, keepdim=True)
    # p(y | tau) = p(y | mu, tau) p(mu) / p(mu | y, tau), here at the mean of mu.
    log_density = (
        dist.Normal(mu_mean, marginal.sqrt()).log_prob(effects).sum(-1, keepdim=True)
        + dist.Normal(0.0, 5.0).log_prob(mu_mean)
        - dist.Normal(mu_mean, mu_variance.sqrt()).log_prob(mu_mean)
        + dist.HalfCauchy(5.0).log_prob(tau)
        + log_tau
    )
    weight = torch.softmax(log_density, 0)
    shrunk = 1 / (1 / errors**2 + 1 / tau**2)
    mean = torch.cat([mu_mean, log_tau, shrunk * (effects / errors**2 + mu_mean / tau**2)], -1)
    variance = torch.cat(
        [mu_variance, torch.zeros_like(tau), shrunk + (shrunk / tau**2) ** 2 * mu_variance], -1
    )
    total = (weight * mean).sum(0)
    return Moments(total, ((weight * (variance + mean**2)).sum(0) - total**2).sqrt())


def moments_of(draws: dict[str, Tensor]) -> Moments:
    columns = [draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1).log()]
    values = torch.cat([*columns, draws["theta"].reshape(-1, 8)], -1)
    return Moments(values.mean(0), values.std(0))


def predictive_moments(guide: Program) -> Moments:
    return moments_of(Predictive(model, guide=guide, num_samples=20_000, parallel=True)())


def squared_errors(moments: Moments, exact: Moments) -> tuple[float, float]:
    """Of means and of standard deviations, summed, in units of the exact standard deviations."""
    mean, sd = ((a - b) / exact.sd for a, b in zip(moments, exact, strict=True))
    return float((mean**2).sum()), float((sd**2).sum())


@pytest.mark.slow
def test_the_refined_guide_is_nearer_to_the_posterior() -> None:
    guide = AutoNormal(model, init_scale=0.5)
    elbo = TraceHamiltonian_ELBO(
        7,
        0.2,
        beta_0=0.8,
        num_particles=8,
        vectorize_particles=True,
        max_plate_nesting=1,
        path="posterior",
    )

    def settings(name: str) -> dict[str, float]:
        return {"lr": 0.01 if name.startswith("hamiltonian") else 0.1, "lrd": 0.985}

    svi = SVI(model, guide, pyro.optim.ClippedAdam(settings), loss=elbo)
    for _ in range(200):
        svi.step()
    exact = exact_moments()
    before = squared_errors(predictive_moments(guide), exact)
    after = squared_errors(predictive_moments(elbo.refine(model, guide)), exact)
    # With 20 000 draws of ten moments the Monte Carlo error of either sum is below 0.001.
    assert min(before) > 0.1, "the guide is too good to be refined"
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]


@pytest.mark.slow
def test_the_exact_moments_are_those_of_nuts() -> None:
    """Two derivations of the reference: a sum over a grid, and a long chain."""
    jax = pytest.importorskip("jax")
    numpyro = pytest.importorskip("numpyro")
    np, np_dist, mcmc = jax.numpy, numpyro.distributions, numpyro.infer

    def chain_model() -> None:
        mu = numpyro.sample("mu", np_dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", np_dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            eta = numpyro.sample("eta", np_dist.Normal(0.0, 1.0))
            theta = numpyro.deterministic("theta", mu + tau * eta)
            effects = np_dist.Normal(theta, np.array(ERRORS))
            numpyro.sample("effect", effects, obs=np.array(EFFECTS))

    kernel = mcmc.NUTS(chain_model, target_accept_prob=0.95)
    chain = mcmc.MCMC(kernel, num_warmup=500, num_samples=4000, progress_bar=False)
    chain.run(jax.random.key(0))
    draws = {name: torch.tensor(value.tolist()) for name, value in chain.get_samples().items()}
    errors = squared_errors(moments_of(draws), exact_moments())
    # Ten moments, each with an effective sample size above 1000.
    assert max(errors) < 10 * 2 / 1000

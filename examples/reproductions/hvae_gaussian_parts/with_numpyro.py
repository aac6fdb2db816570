"""The fits with NumPyro."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer import Trace_ELBO
from numpyro.optim import RMSProp

from hvae_gaussian_parts.methods import (
    BETA_0,
    LOG_SCALE,
    LOG_SIGMA,
    PARTICLES,
    RMS_DECAY,
    STEP_SIZE,
    Method,
    Plan,
    Snapshot,
    snapshot,
)
from hvae_gaussian_parts.problem import DataSets
from numpyro_backend import SVI, TraceHamiltonian_ELBO
from numpyro_backend.diagnostics import log_evidence


@dataclass(frozen=True)
class Programs:
    """Models and guides of data sets that share a plate and nothing else.

    Attributes:
        size: Number of data in each.
    """

    size: int

    def model(self, mean: Array, scatter: Array) -> None:
        """A latent per data set, and the data given it."""
        shift, log_sigma = parameters(mean)
        with numpyro.plate("data_sets", len(mean)):
            z = numpyro.sample("z", standard_normal(mean))
            numpyro.factor("data", self.log_likelihood(z, shift, log_sigma, mean, scatter))

    def prior(self, mean: Array, scatter: Array) -> None:
        """Where the flows start: a guide that learns nothing."""
        with numpyro.plate("data_sets", len(mean)):
            numpyro.sample("z", standard_normal(mean))

    def mean_field(self, mean: Array, scatter: Array) -> None:
        """A guide that learns a normal."""
        loc, log_scale = variational_parameters(mean)
        with numpyro.plate("data_sets", len(mean)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    def bound_of_mean_field(self, mean: Array, scatter: Array) -> None:
        """The bound of model and `mean_field`, whose expectations are known: nothing is drawn."""
        shift, log_sigma = parameters(mean)
        loc, log_scale = variational_parameters(mean)
        likelihood = self.log_likelihood(loc, shift, log_sigma, mean, scatter)
        spread = 0.5 * self.size * jnp.exp(2 * (log_scale - log_sigma)).sum(-1)
        kl = (0.5 * (loc**2 + jnp.exp(2 * log_scale) - 1) - log_scale).sum(-1)
        with numpyro.plate("data_sets", len(mean)):
            numpyro.factor("bound", likelihood - spread - kl)

    def nothing(self, mean: Array, scatter: Array) -> None:
        """The guide of a model without latents."""

    def log_likelihood(
        self, z: Array, shift: Array, log_sigma: Array, mean: Array, scatter: Array
    ) -> Array:
        """The likelihood log p(D | z), of shape (data sets,)."""
        precision = jnp.exp(-2 * log_sigma)
        constant = self.size * (log_sigma + 0.5 * math.log(2 * math.pi)) + 0.5 * precision * scatter
        distance = (precision * (z + (shift - mean)) ** 2).sum(-1)
        return -constant.sum(-1) - 0.5 * self.size * distance


def fit(method: Method, data: DataSets, plan: Plan, device: str) -> Iterator[Snapshot]:
    """Train, and tell at every checkpoint what has been learned; JAX chooses the device."""
    programs = Programs(data.size)
    with jax.enable_x64(True):
        statistics = jnp.asarray(data.mean), jnp.asarray(data.scatter)
        elbo = flow(method, statistics[0]) if method.num_steps else None
        svi = SVI(
            programs.bound_of_mean_field if elbo is None else programs.model,
            programs.nothing if elbo is None else programs.prior,
            RMSProp(plan.learning_rate, gamma=RMS_DECAY),
            loss=Trace_ELBO() if elbo is None else elbo,
        )
        advance = jax.jit(partial(_advance, svi))
        state, taken = svi.init(jax.random.key(plan.seed), *statistics), 0
        for steps in plan.checkpoints:
            state, taken = advance(state, steps - taken, *statistics), steps
            yield look(programs, elbo, svi.get_params(state), statistics, steps, plan)


def look(
    programs: Programs,
    elbo: TraceHamiltonian_ELBO | None,
    params: dict[str, Array],
    statistics: tuple[Array, Array],
    steps: int,
    plan: Plan,
) -> Snapshot:
    """What has been learned by now."""
    if elbo is None:
        guide, beta_0 = programs.mean_field, 1.0
    else:
        guide, beta_0 = programs.prior, float(params.get("hamiltonian.beta_0", 1.0))
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        evidence = log_evidence(
            jax.random.key(plan.seed),
            params,
            programs.model,
            guide,
            *statistics,
            num_samples=plan.draws,
            elbo=elbo,
        )
    return snapshot(steps, params["shift"], params["log_sigma"], evidence.log_weights, beta_0)


def flow(method: Method, mean: Array) -> TraceHamiltonian_ELBO:
    """The objective, with a step size per data set and coordinate."""
    return TraceHamiltonian_ELBO(
        method.num_steps,
        jnp.full_like(mean, STEP_SIZE),
        beta_0=BETA_0,
        tempering=method.tempering,
        num_particles=PARTICLES,
    )


def parameters(mean: Array) -> tuple[Array, Array]:
    """Shift and log scale."""
    return (
        numpyro.param("shift", jnp.zeros_like(mean)),
        numpyro.param("log_sigma", jnp.full_like(mean, LOG_SIGMA)),
    )


def variational_parameters(mean: Array) -> tuple[Array, Array]:
    """Mean and log scale of the mean-field normal."""
    return (
        numpyro.param("loc", jnp.zeros_like(mean)),
        numpyro.param("log_scale", jnp.full_like(mean, LOG_SCALE)),
    )


def standard_normal(mean: Array) -> dist.Distribution:
    """The prior of a latent."""
    return dist.Normal(jnp.zeros(mean.shape[-1]), 1.0).to_event(1)


def _advance(svi: SVI, state: Any, steps: int, mean: Array, scatter: Array) -> Any:
    def step(_: int, state: Any) -> Any:
        return svi.stable_update(state, mean, scatter)[0]

    return jax.lax.fori_loop(0, steps, step, state)

"""The fits with Pyro."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

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
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.diagnostics import log_evidence


@dataclass(frozen=True)
class Programs:
    """Models and guides of data sets that share a plate and nothing else.

    Attributes:
        size: Number of data in each.
    """

    size: int

    def model(self, mean: Tensor, scatter: Tensor) -> None:
        """A latent per data set, and the data given it."""
        shift, log_sigma = parameters(mean)
        with pyro.plate("data_sets", len(mean)):
            z = pyro.sample("z", standard_normal(mean))
            pyro.factor("data", self.log_likelihood(z, shift, log_sigma, mean, scatter))

    def prior(self, mean: Tensor, scatter: Tensor) -> None:
        """Where the flows start: a guide that learns nothing."""
        with pyro.plate("data_sets", len(mean)):
            pyro.sample("z", standard_normal(mean))

    def mean_field(self, mean: Tensor, scatter: Tensor) -> None:
        """A guide that learns a normal."""
        loc, log_scale = variational_parameters(mean)
        with pyro.plate("data_sets", len(mean)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def bound_of_mean_field(self, mean: Tensor, scatter: Tensor) -> None:
        """The bound of model and `mean_field`, whose expectations are known: nothing is drawn."""
        shift, log_sigma = parameters(mean)
        loc, log_scale = variational_parameters(mean)
        likelihood = self.log_likelihood(loc, shift, log_sigma, mean, scatter)
        spread = 0.5 * self.size * (2 * (log_scale - log_sigma)).exp().sum(-1)
        kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(-1)
        with pyro.plate("data_sets", len(mean)):
            pyro.factor("bound", likelihood - spread - kl)

    def nothing(self, mean: Tensor, scatter: Tensor) -> None:
        """The guide of a model without latents."""

    def log_likelihood(
        self, z: Tensor, shift: Tensor, log_sigma: Tensor, mean: Tensor, scatter: Tensor
    ) -> Tensor:
        """The likelihood log p(D | z), of shape (*particles, data sets)."""
        precision = (-2 * log_sigma).exp()
        constant = self.size * (log_sigma + 0.5 * math.log(2 * math.pi)) + 0.5 * precision * scatter
        distance = (precision * (z + (shift - mean)) ** 2).sum(-1)
        return -constant.sum(-1) - 0.5 * self.size * distance


def fit(method: Method, data: DataSets, plan: Plan, device: str) -> Iterator[Snapshot]:
    """Train, and tell at every checkpoint what has been learned."""
    pyro.clear_param_store()
    pyro.set_rng_seed(plan.seed)
    programs = Programs(data.size)
    with double_precision():
        statistics = torch.as_tensor(data.mean).to(device), torch.as_tensor(data.scatter).to(device)
        with torch.device(device):
            elbo = flow(method, statistics[0]) if method.num_steps else None
        svi = CompiledSVI(
            programs.bound_of_mean_field if elbo is None else programs.model,
            programs.nothing if elbo is None else programs.prior,
            partial(torch.optim.RMSprop, lr=plan.learning_rate, alpha=RMS_DECAY),
            loss=Trace_ELBO() if elbo is None else elbo,
        )
        taken = 0
        for steps in plan.checkpoints:
            for _ in range(steps - taken):
                svi.step(*statistics)
            taken = steps
            yield look(programs, elbo, statistics, steps, plan)


def look(
    programs: Programs,
    elbo: TraceHamiltonian_ELBO | None,
    statistics: tuple[Tensor, Tensor],
    steps: int,
    plan: Plan,
) -> Snapshot:
    """What has been learned by now."""
    guide = programs.mean_field if elbo is None else programs.prior
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        evidence = log_evidence(
            programs.model, guide, *statistics, num_samples=plan.draws, elbo=elbo
        )
        shift, log_sigma = (
            parameter.detach().cpu().numpy() for parameter in parameters(statistics[0])
        )
        beta_0 = 1.0 if elbo is None else float(elbo.flow().inverse_temperatures[0].detach())
    return snapshot(steps, shift, log_sigma, evidence.log_weights.cpu().numpy(), beta_0)


def flow(method: Method, mean: Tensor) -> TraceHamiltonian_ELBO:
    """The objective, with a step size per data set and coordinate."""
    return TraceHamiltonian_ELBO(
        method.num_steps,
        torch.full_like(mean, STEP_SIZE),
        beta_0=BETA_0,
        tempering=method.tempering,
        num_particles=PARTICLES,
        vectorize_particles=True,
        max_plate_nesting=1,
    )


def parameters(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and log scale."""
    return (
        pyro.param("shift", lambda: torch.zeros_like(mean)),
        pyro.param("log_sigma", lambda: torch.full_like(mean, LOG_SIGMA)),
    )


def variational_parameters(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log scale of the mean-field normal."""
    return (
        pyro.param("loc", lambda: torch.zeros_like(mean)),
        pyro.param("log_scale", lambda: torch.full_like(mean, LOG_SCALE)),
    )


def standard_normal(mean: Tensor) -> dist.Independent:
    """The prior of a latent."""
    return dist.Normal(mean.new_zeros(mean.shape[-1]), 1.0).to_event(1)


@contextmanager
def double_precision() -> Iterator[None]:
    """Sums of squares over ten thousand data leave single precision no digits for the bound."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

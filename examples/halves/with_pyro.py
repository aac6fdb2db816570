"""Pyro by names that `with_numpyro` has too: programs written with them run with either."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions
import torch
from pyro.infer import ELBO, MCMC, NUTS, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim import ClippedAdam
from torch import Tensor

from halves import Program, Trained, numbers
from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO, diagnostics
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.inference_data import to_inference_data

ppl, dist, xp = pyro, pyro.distributions, torch
deterministic = partial(pyro.deterministic, event_dim=0)


@contextmanager
def computing(device: str = "cpu", *, double: bool = False) -> Iterator[None]:
    """Where arrays are, and with which precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def array(values: Any) -> Tensor:
    """Of floating point."""
    return torch.tensor(values, dtype=torch.get_default_dtype())


def particles(count: int, *, plates: int) -> dict[str, Any]:
    """The options of an objective with as many draws at once, of a model with nested plates."""
    return {"num_particles": count, "vectorize_particles": True, "max_plate_nesting": plates}


def adam(learning_rate: float) -> Any:
    """Steps all parameters at once."""
    return partial(torch.optim.Adam, lr=learning_rate, fused=True)


def clipped_adam(learning_rate: float, decay: float) -> Any:
    """With a learning rate that decays by a factor per step."""
    return ClippedAdam({"lr": learning_rate, "lrd": decay})


def rms_prop(learning_rate: float, decay: float) -> Any:
    """With the decay of its mean of squares."""
    return partial(torch.optim.RMSprop, lr=learning_rate, alpha=decay)


class Fitting(Trained):
    """A training of a model and a guide without arguments.

    Args:
        model: The model.
        guide: The guide.
        objective: The loss.
        optimiser: Made by a function of this module.
        seed: Of all randomness.
    """

    diagnostics = diagnostics

    def __init__(
        self, model: Program, guide: Program, objective: ELBO, optimiser: Any, *, seed: int
    ) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.model, self.guide, self.objective = model, guide, objective
        self.svi = CompiledSVI(model, guide, optimiser, loss=objective)
        self.svi.evaluate_loss()  # declares the parameters

    def advance(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            self.svi.step()

    def step(self) -> Any:
        """Take one, and tell the loss."""
        return self.svi.step()

    def param(self, name: str) -> np.ndarray:
        """What a parameter is now."""
        return numbers(pyro.param(name))

    @torch.no_grad()
    def draws(self, count: int) -> dict[str, np.ndarray]:
        """Draws of the trained guide, after its flow."""
        guide = self.flow.refine(self.model, self.guide) if self.flow else self.guide
        with pyro.plate("draws", count, dim=-1):
            return {site: values.cpu().numpy() for site, values in guide().items()}


def chain(
    model: Program, count: int, *, warmup: int, accept: float, seed: int, quiet: bool = True
) -> MCMC:
    """A chain of NUTS, adapted to an acceptance probability."""
    pyro.set_rng_seed(seed)
    kernel = NUTS(model, target_accept_prob=accept, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=count, warmup_steps=warmup, disable_progbar=quiet)
    mcmc.run()
    return mcmc

"""NumPyro by names that `with_pyro` has too: programs written with them run with either."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer import Trace_ELBO as Trace_ELBO
from numpyro.infer import TraceMeanField_ELBO as TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal as AutoNormal
from numpyro.infer.elbo import ELBO
from numpyro.infer.initialization import init_to_value as init_to_value
from numpyro.optim import Adam, ClippedAdam, RMSProp

from numpyro_backend import SVI, TraceHamiltonian_ELBO
from numpyro_backend import TraceMMD_ELBO as TraceMMD_ELBO
from numpyro_backend.diagnostics import log_evidence

Program = Callable[[], Any]

ppl, dist, xp = numpyro, numpyro.distributions, jnp
adam = Adam


@contextmanager
def computing(device: str = "cpu", *, double: bool = False) -> Iterator[None]:
    """With which precision; JAX takes the device that it finds."""
    with jax.enable_x64(double or jax.config.read("jax_enable_x64")):
        yield


def array(values: Any) -> Array:
    """Of floating point."""
    return jnp.asarray(values, float)


def particles(count: int, *, plates: int) -> dict[str, Any]:
    """The options of an objective with as many draws at once."""
    return {"num_particles": count}


def clipped_adam(learning_rate: float, decay: float) -> Any:
    """With a learning rate that decays by a factor per step."""
    return ClippedAdam(lambda step: learning_rate * decay**step)


def rms_prop(learning_rate: float, decay: float) -> Any:
    """With the decay of its mean of squares."""
    return RMSProp(learning_rate, gamma=decay)


class Fitting:
    """A model and a guide, without arguments, that an objective trains.

    Args:
        model: The model.
        guide: The guide.
        objective: The loss.
        optimiser: Made by a function of this module.
        seed: Of all randomness.
    """

    def __init__(
        self, model: Program, guide: Program, objective: ELBO, optimiser: Any, *, seed: int
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.svi = SVI(model, guide, optimiser, loss=objective)
        self.key, init_key = jax.random.split(jax.random.key(seed))
        self.state = self.svi.init(init_key)
        self._update = jax.jit(self.svi.stable_update)
        self._advance = jax.jit(partial(_advance, self.svi))

    def advance(self, steps: int) -> None:
        """Take some steps."""
        self.state = self._advance(self.state, steps)

    def step(self) -> Any:
        """Take one, and tell the loss."""
        self.state, loss = self._update(self.state)
        return loss

    @property
    def params(self) -> dict[str, Any]:
        """All parameters as they are now."""
        return self.svi.get_params(self.state)

    def param(self, name: str) -> np.ndarray:
        """What a parameter is now."""
        return np.asarray(self.params[name], float)

    @property
    def beta_0(self) -> float:
        """The first inverse temperature of the objective's flow, or 1 if it has none."""
        return float(self.params.get("hamiltonian.beta_0", 1.0))

    def log_weights(
        self, count: int, *, model: Program | None = None, guide: Program | None = None
    ) -> np.ndarray:
        """Log importance weights of draws: by default of the trained guide after its flow."""
        flows = guide is None and isinstance(self.objective, TraceHamiltonian_ELBO)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the tables say it
            evidence = log_evidence(
                self.next_key(),
                self.params,
                model or self.model,
                guide or self.guide,
                num_samples=count,
                elbo=self.objective if flows else None,
            )
        return np.asarray(evidence.log_weights, float)

    def draws(self, count: int) -> dict[str, np.ndarray]:
        """Draws of the trained guide, after its flow."""
        flows = isinstance(self.objective, TraceHamiltonian_ELBO)
        guide = self.objective.refine(self.model, self.guide) if flows else self.guide
        fixed = handlers.substitute(guide, data=self.params)
        draw = jax.vmap(lambda key: handlers.seed(fixed, key)())
        drawn = jax.jit(draw)(jax.random.split(self.next_key(), count))
        return {site: np.asarray(values) for site, values in drawn.items()}

    def next_key(self) -> Array:
        """A key that was not used yet."""
        self.key, key = jax.random.split(self.key)
        return key


def chain(model: Program, count: int, *, seed: int) -> dict[str, np.ndarray]:
    """Draws of NUTS, after half as many that adapt it."""
    mcmc = MCMC(NUTS(model), num_warmup=count // 2, num_samples=count, progress_bar=False)
    mcmc.run(jax.random.key(seed))
    return {site: np.asarray(values) for site, values in mcmc.get_samples().items()}


def _advance(svi: SVI, state: Any, steps: int) -> Any:
    return jax.lax.fori_loop(0, steps, lambda _, state: svi.stable_update(state)[0], state)

"""NumPyro by names that `with_pyro` has too: programs written with them run with either."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.elbo import ELBO
from numpyro.infer.initialization import init_to_value
from numpyro.optim import Adam, ClippedAdam, RMSProp

from halves import Program, Trained, numbers
from numpyro_backend import SVI, TraceHamiltonian_ELBO, TraceMMD_ELBO, diagnostics
from numpyro_backend.inference_data import to_inference_data

ppl, dist, xp = numpyro, numpyro.distributions, jnp
deterministic = numpyro.deterministic
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


class Fitting(Trained):
    """A training; `args` are those of model and guide, to declare the parameters with."""

    diagnostics = diagnostics

    def __init__(
        self,
        model: Program,
        guide: Program,
        objective: ELBO,
        optimiser: Any,
        *args: Any,
        seed: int,
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.svi = SVI(model, guide, optimiser, loss=objective)
        self.key, init_key = jax.random.split(jax.random.key(seed))
        self.state = self.svi.init(init_key, *args)
        self._update = jax.jit(self.svi.stable_update)
        self._advance = jax.jit(partial(_advance, self.svi))

    def advance(self, steps: int) -> None:
        """Take some steps."""
        self.state = self._advance(self.state, steps)

    def step(self, *args: Any) -> Any:
        """Take one, and tell the loss."""
        self.state, loss = self._update(self.state, *args)
        return loss

    @property
    def params(self) -> dict[str, Any]:
        """All parameters as they are now."""
        return self.svi.get_params(self.state)

    def param(self, name: str) -> np.ndarray:
        """What a parameter is now."""
        return numbers(self.params[name])

    def ask(self, question: Any, *args: Any, **options: Any) -> Any:
        """What a function of the half says, of what is learned by now."""
        return super().ask(partial(question, self.next_key(), self.params), *args, **options)

    def learned_flow(self) -> Any:
        """What the flow has learned."""
        with handlers.substitute(data=self.params):
            return super().learned_flow()

    def draws(self, count: int) -> dict[str, np.ndarray]:
        """Draws of the trained guide, after its flow."""
        guide = self.flow.refine(self.model, self.guide) if self.flow else self.guide
        fixed = handlers.substitute(guide, data=self.params)
        draw = jax.vmap(lambda key: handlers.seed(fixed, key)())
        return jax.device_get(jax.jit(draw)(jax.random.split(self.next_key(), count)))

    def next_key(self) -> Array:
        """A key that was not used yet."""
        self.key, key = jax.random.split(self.key)
        return key


def chain(
    model: Program, count: int, *, warmup: int, accept: float, seed: int, quiet: bool = True
) -> MCMC:
    """A chain of NUTS, adapted to an acceptance probability."""
    kernel = NUTS(model, target_accept_prob=accept)
    mcmc = MCMC(kernel, num_warmup=warmup, num_samples=count, progress_bar=not quiet)
    mcmc.run(jax.random.key(seed))
    return mcmc


def _advance(svi: SVI, state: Any, steps: int) -> Any:
    return jax.lax.fori_loop(0, steps, lambda _, state: svi.stable_update(state)[0], state)

"""The training with NumPyro."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.example_libraries.optimizers import adamax
from numpyro.infer import TraceMeanField_ELBO
from numpyro.optim import _NumPyroOptim

from hvae_images_parts.data import Images
from hvae_images_parts.methods import BATCH, STEP_SIZE, Method, Net, Setting, Snapshot
from hvae_images_parts.networks import decode, encode, init_decoder, init_encoder
from numpyro_backend import SVI, TraceHamiltonian_ELBO
from numpyro_backend.diagnostics import log_evidence


@dataclass(frozen=True)
class VAE:
    """A variational autoencoder for binary images.

    Attributes:
        side: Height and width of an image.
        net: The size of encoder and decoder.
    """

    side: int
    net: Net

    def model(self, images: Array) -> None:
        """Draw a code for every image, and score the image given its code."""
        params = numpyro.param("decoder", lambda key: init_decoder(key, self.side, self.net))
        with numpyro.plate("data", len(images)):
            prior = dist.Normal(jnp.zeros(self.net.latent_dim), 1.0)
            z = numpyro.sample("z", prior.to_event(1))
            logits = decode(params, z, self.side, self.net)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=images)

    def guide(self, images: Array) -> None:
        """Draw a code for every image, given the image."""
        params = numpyro.param("encoder", lambda key: init_encoder(key, self.side, self.net))
        with numpyro.plate("data", len(images)):
            loc, scale = encode(params, images, self.side, self.net)
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def train(
    method: Method, images: Images, setting: Setting, checkpoints: Sequence[int], seed: int
) -> Iterator[Snapshot]:
    """Train, and tell after some numbers of steps what has been learned.

    JAX chooses the device.
    """
    vae, elbo = VAE(images.side, setting.net), objective(method, setting.net)
    intensities, test = (jnp.asarray(x, float) for x in (images.train, images.test))
    # NumPyro wraps the other optimisers of JAX in this way.
    svi = SVI(vae.model, vae.guide, _NumPyroOptim(adamax, setting.learning_rate), loss=elbo)
    init_key, data_key, draws_key = jax.random.split(jax.random.key(seed), 3)
    state, taken = svi.init(init_key, test[:1]), 0
    advance = jax.jit(partial(_advance, svi))
    for steps in checkpoints:
        state, taken = advance(state, data_key, taken, steps, intensities), steps
        yield look(draws_key, vae, elbo, svi.get_params(state), test, steps, setting.draws)


def look(
    rng_key: Array,
    vae: VAE,
    elbo: TraceHamiltonian_ELBO | TraceMeanField_ELBO,
    params: dict[str, Any],
    test: Array,
    steps: int,
    draws: int,
) -> Snapshot:
    """What has been learned by now."""
    weigh = partial(log_evidence, rng_key, params, vae.model, vae.guide, test, num_samples=draws)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        encoder = weigh().log_weights.astype(float)
        if not isinstance(elbo, TraceHamiltonian_ELBO):
            return Snapshot(steps, encoder, encoder)
        own = weigh(elbo=elbo).log_weights.astype(float)
    with numpyro.handlers.substitute(data=params):
        flow = elbo.flow()
    return Snapshot(
        steps,
        own,
        encoder,
        step_size=float(np.mean(flow.step_size)),
        beta_0=float(flow.inverse_temperatures[0]),
    )


def objective(method: Method, net: Net) -> TraceHamiltonian_ELBO | TraceMeanField_ELBO:
    """The loss; a flow has a step size per dimension, and per step where tempering is free."""
    if method.num_steps == 0:
        return TraceMeanField_ELBO()
    per_step = method.tempering == "free"
    shape = (method.num_steps, net.latent_dim) if per_step else (net.latent_dim,)
    return TraceHamiltonian_ELBO(
        method.num_steps,
        jnp.full(shape, STEP_SIZE),
        beta_0=method.beta_0,
        tempering=method.tempering,
        per_step=per_step,
    )


def _advance(
    svi: SVI, state: Any, data_key: Array, taken: int, steps: int, intensities: Array
) -> Any:
    def step(i: int, state: Any) -> Any:
        rows_key, ink_key = jax.random.split(jax.random.fold_in(data_key, i))
        rows = jax.random.randint(rows_key, (BATCH,), 0, len(intensities))
        images = jax.random.bernoulli(ink_key, intensities[rows]).astype(intensities.dtype)
        return svi.stable_update(state, images)[0]

    return jax.lax.fori_loop(taken, steps, step, state)

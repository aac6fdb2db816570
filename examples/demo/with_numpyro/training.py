"""Training and measuring with NumPyro: its SVI, whatever the objective."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam

from demo.backend import Setting
from demo.with_numpyro.autoregressive import AutoregressiveDecoder
from demo.with_numpyro.vae import VAE, MLPDecoder
from numpyro_backend import SVI, TraceHamiltonian_ELBO
from numpyro_backend.diagnostics import Evidence, aggregated_posterior, log_evidence
from numpyro_backend.kernels import RBF
from numpyro_backend.mmd import mmd_squared


def start(objective: Callable[[], ELBO], images: np.ndarray, setting: Setting) -> "Training":
    """A training that has taken no step yet; weights start as under any other objective."""
    decoder = AutoregressiveDecoder if setting.autoregressive else MLPDecoder
    vae = VAE(
        decoder(setting.pixels, setting.latent_dim),
        pixels=setting.pixels,
        levels=setting.levels,
        latent_dim=setting.latent_dim,
    )
    return Training(vae, objective(), jnp.asarray(images), setting)


class Training:
    """A model, a guide and an objective.

    Args:
        vae: Holds model and guide.
        objective: The loss that `SVI` descends.
        images: All training images, of shape (n, pixels).
        setting: The learning rate and the seed.
    """

    def __init__(self, vae: VAE, objective: ELBO, images: Array, setting: Setting) -> None:
        self.vae = vae
        self.objective = objective
        self.images = images
        self.svi = SVI(vae.model, vae.guide, Adam(setting.learning_rate), loss=objective)
        self.key, init_key = jax.random.split(jax.random.key(setting.seed))
        self.state = self.svi.init(init_key, images, jnp.arange(2))
        self._update = jax.jit(self.svi.update)

    @property
    def params(self) -> dict[str, Any]:
        """What has been learned so far."""
        return self.svi.get_params(self.state)

    def epoch(self, minibatches: Sequence[np.ndarray]) -> float:
        """Take a step per minibatch; the loss averaged over the rows."""
        loss = jnp.zeros(())
        for rows in minibatches:
            self.state, step = self._update(self.state, self.images, jnp.asarray(rows))
            loss += step * len(rows)
        return float(loss) / len(self.images)

    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of q(z|x)."""
        return jax.device_get(self._posterior(self.params["encoder"], jnp.asarray(images)))

    def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Logits of p(x|z)."""
        return np.asarray(self._logits(self.params["decoder"], jnp.asarray(z), jnp.asarray(images)))

    def loss(self, images: np.ndarray) -> float:
        """The objective's own loss."""
        return float(self._loss(self._next_key(), self.params, *_all(images)))

    def log_evidence(self, images: np.ndarray, *, num_samples: int) -> Evidence:
        """Estimates of log p(x)."""
        flow = getattr(self.objective, "base", self.objective)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the table says it
            return log_evidence(
                self._next_key(),
                self.params,
                self.vae.model,
                self.vae.guide,
                *_all(images),
                num_samples=num_samples,
                elbo=flow if isinstance(flow, TraceHamiltonian_ELBO) else None,
            )

    def information(self, images: np.ndarray) -> float:
        """The mutual information of these images and their codes."""
        codes = aggregated_posterior(
            self._next_key(), self.params, self.vae.model, self.vae.guide, *_all(images)
        )
        return float(codes.mutual_information)

    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        """The MMD² of two samples."""
        return float(_mmd_squared(jnp.asarray(x), jnp.asarray(y)))

    def _next_key(self) -> Array:
        self.key, key = jax.random.split(self.key)
        return key

    @partial(jax.jit, static_argnums=0)
    def _posterior(self, encoder: Any, images: Array) -> tuple[Array, Array]:
        normal = self.vae.posterior(encoder, images).base_dist
        return normal.loc, normal.scale

    @partial(jax.jit, static_argnums=0)
    def _logits(self, decoder: Any, z: Array, images: Array) -> Array:
        return self.vae.decoder.apply(decoder, z, images)

    @partial(jax.jit, static_argnums=0)
    def _loss(self, rng_key: Array, params: dict[str, Any], images: Array, rows: Array) -> Array:
        return self.objective.loss(rng_key, params, self.svi.model, self.svi.guide, images, rows)


@jax.jit
def _mmd_squared(x: Array, y: Array) -> Array:
    return mmd_squared(x, y, RBF())


def _all(images: np.ndarray) -> tuple[Array, Array]:
    return jnp.asarray(images), jnp.arange(len(images))

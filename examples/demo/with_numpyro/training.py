"""Training and measuring with NumPyro: its SVI, whatever the objective."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.example_libraries.optimizers import adamax
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam, _NumPyroOptim

from demo import backend
from demo.backend import Setting
from demo.with_numpyro.autoregressive import AutoregressiveDecoder
from demo.with_numpyro.vae import MLP, VAE
from halves.with_numpyro import Fitting
from numpyro_backend.kernels import RBF
from numpyro_backend.mmd import mmd_squared

HIDDEN = 128
_mmd_squared = jax.jit(partial(mmd_squared, kernel=RBF()))
# NumPyro wraps the other optimisers of JAX in this way.
OPTIMISERS = {"adam": Adam, "adamax": partial(_NumPyroOptim, adamax)}


def start(
    objective: Callable[[], ELBO],
    images: np.ndarray,
    setting: Setting,
    build: Callable[[Setting], VAE] | None = None,
) -> "Training":
    """A training that has taken no step yet; weights start as under any other objective."""
    vae = (build or build_vae)(setting)
    return Training(vae, objective(), jnp.asarray(images), setting)


def build_vae(setting: Setting, kind: type[VAE] = VAE) -> VAE:
    """The model and the guide."""
    decoder = (
        AutoregressiveDecoder(setting.pixels, setting.latent_dim)
        if setting.autoregressive
        else MLP((setting.latent_dim, HIDDEN, HIDDEN, setting.pixels))
    )
    encoder = MLP((setting.pixels, HIDDEN, HIDDEN, 2 * setting.latent_dim))
    return kind(encoder, decoder, levels=setting.levels, latent_dim=setting.latent_dim)


class Training(Fitting, backend.Training):
    """Steps are compiled by JAX."""

    def __init__(self, vae: VAE, objective: ELBO, images: Array, setting: Setting) -> None:
        self.vae, self.images = vae, images
        optimiser = OPTIMISERS[setting.optimiser](setting.learning_rate)
        rows = jnp.arange(2)
        super().__init__(
            vae.model, vae.guide, objective, optimiser, images, rows, seed=setting.seed
        )
        self._loss = jax.jit(objective.loss, static_argnums=(2, 3))

    def step(self, images: np.ndarray | Array, rows: np.ndarray) -> Array:
        """Take a step on rows of some images; the loss in nats, of all of these images."""
        return super().step(jnp.asarray(images), jnp.asarray(rows))

    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of q(z|x)."""
        return jax.device_get(self._posterior(self.params["encoder"], jnp.asarray(images)))

    def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Logits of p(x|z)."""
        return np.asarray(self._logits(self.params["decoder"], jnp.asarray(z), jnp.asarray(images)))

    def loss(self, images: np.ndarray) -> float:
        """The objective's own loss."""
        return float(self.ask(self._loss, *self.all_of(images)))

    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        """The MMD² of two samples."""
        return float(_mmd_squared(jnp.asarray(x), jnp.asarray(y)))

    def all_of(self, images: np.ndarray) -> tuple[Array, Array]:
        """The images and the numbers of all their rows."""
        return jnp.asarray(images), jnp.arange(len(images))

    @partial(jax.jit, static_argnums=0)
    def _posterior(self, encoder: Any, images: Array) -> tuple[Array, Array]:
        posterior = self.vae.posterior(encoder, images)
        return posterior.mean, jnp.sqrt(posterior.variance)

    @partial(jax.jit, static_argnums=0)
    def _logits(self, decoder: Any, z: Array, images: Array) -> Array:
        return self.vae.decoder.apply(decoder, z, images)

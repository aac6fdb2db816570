"""The autoencoder in NumPyro, from and to the weights of any library."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from demo.with_numpyro.training import Training
from demo.with_numpyro.vae import MLP, VAE, Params
from rival_objectives.autoencoders import LATENTS, Layers, Weights


class LogVarianceVAE(VAE):
    """The demo's, whose encoder ends in means and log variances."""

    def posterior(self, encoder: Params, images: Array) -> dist.Distribution:
        """q(z | x)."""
        loc, log_variance = jnp.split(self.encoder.apply(encoder, images), 2, -1)
        return dist.Normal(loc, jnp.exp(log_variance / 2)).to_event(1)


@dataclass(frozen=True)
class Given(MLP):
    """Layers whose weights are not drawn.

    Attributes:
        weights: Those to start from.
    """

    weights: tuple[dict[str, Array], ...] = ()

    def init(self, rng_key: Array) -> Params:
        """The weights."""
        return list(self.weights)


def build(weights: Weights) -> LogVarianceVAE:
    """Model and guide with these weights."""
    return LogVarianceVAE(_given(weights.encoder), _given(weights.decoder), 1, LATENTS)


def weights_of(training: Training) -> Weights:
    """As they are now."""
    params = jax.device_get(training.params)
    return Weights(
        *([(p["kernel"], p["bias"]) for p in params[name]] for name in ("encoder", "decoder"))
    )


def _given(layers: Layers) -> Given:
    arrays = jax.tree.map(jnp.asarray, layers)
    return Given((), tuple({"kernel": kernel, "bias": bias} for kernel, bias in arrays))

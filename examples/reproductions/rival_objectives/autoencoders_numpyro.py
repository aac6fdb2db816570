"""The autoencoder's networks in NumPyro, from and to the weights of any library."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from demo.with_numpyro.training import Training
from demo.with_numpyro.vae import MLP, Params
from rival_objectives.autoencoders import Layers, Weights


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


def network(weights: Layers) -> Given:
    """Linear layers with SiLU in between."""
    arrays = jax.tree.map(lambda array: jnp.asarray(array, float), weights)
    return Given((), tuple({"kernel": kernel, "bias": bias} for kernel, bias in arrays))


def weights_of(training: Training) -> Weights:
    """As they are now."""
    params = jax.device_get(training.params)
    return Weights(
        *([(p["kernel"], p["bias"]) for p in params[name]] for name in ("encoder", "decoder"))
    )

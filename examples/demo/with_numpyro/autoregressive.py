"""A decoder that can do without the code."""

from dataclasses import dataclass

import jax
import numpy as np
from jax import Array

from demo.with_numpyro.vae import Params, init_layers, linear

CODE_SCALE = 0.1


@dataclass(frozen=True)
class AutoregressiveDecoder:
    """The masked autoencoder of `demo.with_pyro.autoregressive`, in NumPyro."""

    pixels: int
    latent_dim: int
    hidden: int = 64

    def init(self, rng_key: Array) -> Params:
        """Draw its weights."""
        masks = self._masks()
        shapes = [*(mask.shape for mask in masks.values()), (self.latent_dim, self.hidden)]
        *layers, code = init_layers(rng_key, shapes)
        return {**dict(zip(masks, layers, strict=True)), "code": CODE_SCALE * code["kernel"]}

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """Score images of shape (*batch, pixels) under codes of shape (*batch, latent_dim)."""
        layers = {
            name: {**params[name], "kernel": mask * params[name]["kernel"]}
            for name, mask in self._masks().items()
        }
        hidden = jax.nn.silu(linear(layers["first"], images) + inputs @ params["code"])
        hidden = jax.nn.silu(linear(layers["second"], hidden))
        return linear(layers["third"], hidden) + linear(layers["direct"], images)

    def _masks(self) -> dict[str, np.ndarray]:
        """Which weights of each layer are not 0, of shape (inputs, outputs)."""
        pixel = np.arange(self.pixels)
        last_seen = np.arange(self.hidden) % (self.pixels - 1)
        return {
            "first": last_seen >= pixel[:, None],
            "second": last_seen >= last_seen[:, None],
            "third": pixel > last_seen[:, None],
            "direct": pixel > pixel[:, None],
        }

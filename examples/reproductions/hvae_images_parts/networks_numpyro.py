"""Encoder and decoder in NumPyro, and what was learned of a flow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array

from demo.with_numpyro.training import Training
from demo.with_numpyro.vae import VAE, linear
from hvae_images_parts.methods import Net

Params = list[dict[str, Array]]

KERNEL = 5


def build(side: int, net: Net) -> VAE:
    """The demo's model and guide, with other networks."""
    return VAE(Encoder(side, net), Decoder(side, net), levels=1, latent_dim=net.latent_dim)


@dataclass(frozen=True)
class Encoder:
    """Images of shape (n, pixels) to a mean and an unconstrained scale.

    Attributes:
        side: Height and width of an image.
        net: The size of encoder and decoder.
    """

    side: int
    net: Net

    def init(self, rng_key: Array) -> Params:
        """Weights, drawn as PyTorch draws them."""
        channels = (1, *self.net.channels)
        features = channels[-1] * self.net.sides(self.side)[-1] ** 2
        shapes = [(KERNEL, KERNEL, *size) for size in pairwise(channels)]
        shapes += [(features, self.net.hidden), (self.net.hidden, 2 * self.net.latent_dim)]
        return _init(rng_key, shapes)

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """Both, side by side."""
        x = inputs.reshape(-1, self.side, self.side, 1)
        for layer in params[:-2]:
            x = jax.nn.softplus(_convolve(layer, x))
        hidden = jax.nn.softplus(linear(params[-2], x.reshape(len(x), -1)))
        return linear(params[-1], hidden)


@dataclass(frozen=True)
class Decoder:
    """Codes of shape (*batch, latent_dim) to logits of the pixels: the encoder mirrored.

    Attributes:
        side: Height and width of an image.
        net: The size of encoder and decoder.
    """

    side: int
    net: Net

    def init(self, rng_key: Array) -> Params:
        """Weights, likewise."""
        channels, net = (1, *self.net.channels)[::-1], self.net
        features = channels[0] * net.sides(self.side)[-1] ** 2
        shapes = [(net.latent_dim, net.hidden), (net.hidden, features)]
        shapes += [(KERNEL, KERNEL, *size) for size in pairwise(channels)]
        return _init(rng_key, shapes)

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """The logits, of shape (*batch, pixels)."""
        sizes = self.net.sides(self.side)[::-1]
        x = linear(params[1], jax.nn.softplus(linear(params[0], inputs)))
        x = x.reshape(math.prod(inputs.shape[:-1]), sizes[0], sizes[0], -1)
        for layer, (small, large) in zip(params[2:], pairwise(sizes), strict=True):
            x = _convolve_up(layer, jax.nn.softplus(x), beyond=large - (2 * small - 1))
        return x.reshape(*inputs.shape[:-1], -1)


def flow(training: Training) -> tuple[float, float]:
    """The mean step size, and the first inverse temperature."""
    with numpyro.handlers.substitute(data=training.params):
        learned = training.objective.flow()
    return float(jnp.mean(learned.step_size)), float(learned.inverse_temperatures[0])


def _init(rng_key: Array, shapes: Sequence[tuple[int, ...]]) -> Params:
    params = []
    for key, shape in zip(jax.random.split(rng_key, len(shapes)), shapes, strict=True):
        bound = math.prod(shape[:-1]) ** -0.5
        keys = jax.random.split(key)
        draw: Any = jax.random.uniform
        params.append(
            {
                "kernel": draw(keys[0], shape, minval=-bound, maxval=bound),
                "bias": draw(keys[1], shape[-1:], minval=-bound, maxval=bound),
            }
        )
    return params


def _convolve(layer: dict[str, Array], x: Array) -> Array:
    maps = jax.lax.conv_general_dilated(
        x, layer["kernel"], (2, 2), [(2, 2), (2, 2)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return maps + layer["bias"]


def _convolve_up(layer: dict[str, Array], x: Array, *, beyond: int) -> Array:
    padding = (2, 2 + beyond)
    maps = jax.lax.conv_transpose(
        x, layer["kernel"], (2, 2), [padding, padding], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return maps + layer["bias"]

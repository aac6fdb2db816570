"""Encoder and decoder in NumPyro: those of `networks_pyro`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import jax
from jax import Array

from demo.with_numpyro.vae import VAE, Params, init_layers, linear
from hvae_images_parts.methods import Net

KERNEL = 5


def build(side: int, net: Net) -> VAE:
    """The demo's model and guide, with other networks."""
    return VAE(Encoder(side, net), Decoder(side, net), levels=1, latent_dim=net.latent_dim)


@dataclass(frozen=True)
class Network:
    """Layers of one or the other, for images of a height and width."""

    side: int
    net: Net

    @property
    def features(self) -> int:
        """Numbers in the smallest maps."""
        return (1, *self.net.channels)[-1] * self.net.sides(self.side)[-1] ** 2


class Encoder(Network):
    """Images of shape (n, pixels) to a mean and an unconstrained scale."""

    def init(self, rng_key: Array) -> Params:
        """Weights, drawn as PyTorch draws them."""
        net = self.net
        shapes = [(KERNEL, KERNEL, *size) for size in pairwise((1, *net.channels))]
        shapes += [(self.features, net.hidden), (net.hidden, 2 * net.latent_dim)]
        return init_layers(rng_key, shapes)

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """Both, side by side."""
        x = inputs.reshape(-1, self.side, self.side, 1)
        for layer in params[:-2]:
            x = jax.nn.softplus(_convolve(jax.lax.conv_general_dilated, layer, x))
        hidden = jax.nn.softplus(linear(params[-2], x.reshape(len(x), -1)))
        return linear(params[-1], hidden)


class Decoder(Network):
    """Codes of shape (*batch, latent_dim) to logits of the pixels: the encoder mirrored."""

    def init(self, rng_key: Array) -> Params:
        """Weights, likewise."""
        net = self.net
        shapes = [(net.latent_dim, net.hidden), (net.hidden, self.features)]
        shapes += [(KERNEL, KERNEL, *size) for size in pairwise((1, *net.channels)[::-1])]
        return init_layers(rng_key, shapes)

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """The logits, of shape (*batch, pixels)."""
        sizes = self.net.sides(self.side)[::-1]
        x = linear(params[1], jax.nn.softplus(linear(params[0], inputs)))
        x = x.reshape(math.prod(inputs.shape[:-1]), sizes[0], sizes[0], -1)
        for layer, (small, large) in zip(params[2:], pairwise(sizes), strict=True):
            beyond = large - (2 * small - 1)
            x = _convolve(jax.lax.conv_transpose, layer, jax.nn.softplus(x), beyond=beyond)
        return x.reshape(*inputs.shape[:-1], -1)


def _convolve(
    operation: Callable[..., Array], layer: Params, x: Array, *, beyond: int = 0
) -> Array:
    padding, layout = (2, 2 + beyond), ("NHWC", "HWIO", "NHWC")
    maps = operation(x, layer["kernel"], (2, 2), [padding, padding], dimension_numbers=layout)
    return maps + layer["bias"]

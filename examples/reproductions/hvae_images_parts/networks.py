"""Encoder and decoder as functions of their weights, for NumPyro."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hvae_images_parts.methods import Net

Params = list[dict[str, Array]]

KERNEL = 5


def init_encoder(rng_key: Array, side: int, net: Net) -> Params:
    """Weights of :func:`encode`, drawn as PyTorch draws them."""
    features = (1, *net.channels)[-1] * sides(side, net)[-1] ** 2
    shapes = [(KERNEL, KERNEL, *size) for size in pairwise((1, *net.channels))]
    shapes += [(features, net.hidden), (net.hidden, 2 * net.latent_dim)]
    return _init(rng_key, shapes)


def encode(params: Params, images: Array, side: int, net: Net) -> tuple[Array, Array]:
    """Mean and scale of the code of images of shape (n, pixels)."""
    x = images.reshape(-1, side, side, 1)
    for layer in params[: len(net.channels)]:
        x = jax.nn.softplus(_convolve(layer, x))
    hidden = jax.nn.softplus(_dense(params[-2], x.reshape(len(x), -1)))
    loc, scale = jnp.split(_dense(params[-1], hidden), 2, axis=-1)
    return loc, jax.nn.softplus(scale) + 1e-4


def init_decoder(rng_key: Array, side: int, net: Net) -> Params:
    """Weights of :func:`decode`, likewise."""
    channels = (1, *net.channels)[::-1]
    shapes = [(net.latent_dim, net.hidden), (net.hidden, channels[0] * sides(side, net)[-1] ** 2)]
    shapes += [(KERNEL, KERNEL, *size) for size in pairwise(channels)]
    return _init(rng_key, shapes)


def decode(params: Params, z: Array, side: int, net: Net) -> Array:
    """Logits of the pixels given codes of shape (n, latent_dim): the encoder mirrored."""
    sizes = sides(side, net)[::-1]
    x = _dense(params[1], jax.nn.softplus(_dense(params[0], z)))
    x = x.reshape(len(z), sizes[0], sizes[0], -1)
    for layer, (small, large) in zip(params[2:], pairwise(sizes), strict=True):
        x = _convolve_up(layer, jax.nn.softplus(x), beyond=large - (2 * small - 1))
    return x.reshape(len(z), -1)


def sides(side: int, net: Net) -> list[int]:
    """Height of the maps, from the image on: each convolution halves it."""
    found = [side]
    for _ in net.channels:
        found.append((found[-1] + 1) // 2)
    return found


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


def _dense(layer: dict[str, Array], x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]


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

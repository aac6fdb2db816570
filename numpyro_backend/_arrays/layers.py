# SPDX-License-Identifier: MIT
"""What critics are made of: layers, and the scores of all pairs in blocks."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from pyro_infovae._core.critics import check_encoded, flattened

Activation = Callable[[Array], Array]
Params = Mapping[str, Any]


class Encoder(Protocol):
    """A network in front of a critic, as a pair of functions."""

    def init(self, rng_key: Key[Array, ""]) -> Any:
        """Draw parameters."""

    def apply(self, params: Any, values: Shaped[Array, " rows *event"]) -> Float[Array, " rows f"]:
        """Encode rows as features."""


def init_layers(
    rng_key: Key[Array, ""], widths: Sequence[int]
) -> list[dict[str, Float[Array, " *shape"]]]:
    """Linear layers from width to width, uniform within 1/√(inputs)."""
    keys = jax.random.split(rng_key, len(widths) - 1)
    return [
        _init_linear(key, width_in, width_out)
        for key, (width_in, width_out) in zip(keys, pairwise(widths), strict=True)
    ]


def init_encoders(
    rng_key: Key[Array, ""], x_encoder: Encoder | None, z_encoder: Encoder | None
) -> Params:
    """Parameters of the encoders that there are, under their names."""
    x_key, z_key = jax.random.split(rng_key)
    params = {}
    if x_encoder is not None:
        params["x_encoder"] = x_encoder.init(x_key)
    if z_encoder is not None:
        params["z_encoder"] = z_encoder.init(z_key)
    return params


def linear(
    layer: Mapping[str, Float[Array, " *shape"]], values: Float[Array, " *rows inputs"]
) -> Float[Array, " *rows outputs"]:
    """A linear layer."""
    bias = layer["bias"].reshape((1,) * (values.ndim - 1) + (-1,))
    return jnp.dot(values, layer["kernel"]) + bias


def activated_layers(
    layers: Sequence[Mapping[str, Float[Array, " *shape"]]],
    activation: Activation,
    values: Float[Array, " *rows inputs"],
) -> Float[Array, " *rows outputs"]:
    """Activation and linear layer, in turn."""
    for layer in layers:
        values = linear(layer, activation(values))
    return values


def encode(
    name: str,
    values: Shaped[Array, " rows *event"],
    width: int,
    encoder: Encoder | None,
    params: Params,
    like: Float[Array, "*axes"],
) -> Float[Array, " rows {width}"]:
    """Rows of `width` features: what the encoder makes, or the event dims flattened."""
    if encoder is not None:
        features = encoder.apply(params[f"{name}_encoder"], values)
        return check_encoded(name, features, values.shape[0], width)
    return flattened(name, values, width, like)


def score_in_blocks(
    score_grid: Callable[[Array, Array], Array],
    x: Shaped[Array, " n *event"],
    z: Float[Array, " m features"],
    block_rows: int,
) -> Float[Array, " n m"]:
    """Put together score_grid of blocks of at most `block_rows` pairs, recomputed backward."""
    n, m = x.shape[0], z.shape[0]
    columns = min(m, block_rows)
    rows = block_rows // columns
    if n <= rows and m <= columns:
        return score_grid(x, z)
    x_blocks, z_blocks = _blocks(x, rows), _blocks(z, columns)
    strips, width = x_blocks.shape[0], z_blocks.shape[0]

    @jax.checkpoint
    def score_block(index: Array) -> Array:
        return score_grid(x_blocks[index // width], z_blocks[index % width])

    scores = jax.lax.map(score_block, jnp.arange(strips * width))
    grid = scores.reshape(strips, width, rows, columns).swapaxes(1, 2)
    return grid.reshape(strips * rows, width * columns)[:n, :m]


def _init_linear(
    rng_key: Key[Array, ""], width_in: int, width_out: int
) -> dict[str, Float[Array, " *shape"]]:
    kernel_key, bias_key = jax.random.split(rng_key)
    bound = 1 / math.sqrt(width_in)
    return {
        "kernel": jax.random.uniform(
            kernel_key, (width_in, width_out), minval=-bound, maxval=bound
        ),
        "bias": jax.random.uniform(bias_key, (width_out,), minval=-bound, maxval=bound),
    }


def _blocks(values: Array, rows: int) -> Array:
    """Blocks of equally many rows, the last one filled up with copies of the last row."""
    missing = -values.shape[0] % rows
    filled = jnp.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    return filled.reshape(-1, rows, *values.shape[1:])

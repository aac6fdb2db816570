# SPDX-License-Identifier: MIT
"""The layers critics are made of."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

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
    dtype: jnp.dtype[Any],
) -> Float[Array, " rows {width}"]:
    """Rows of `width` features: what the encoder makes, or the event dims flattened."""
    rows = values.shape[0]
    if encoder is not None:
        features = encoder.apply(params[f"{name}_encoder"], values)
        if features.shape != (rows, width):
            raise ValueError(
                f"Expected {name}_encoder({name}) of shape ({rows}, {width}); got "
                f"{features.shape}: {name}_dim is the width of the encoder's output"
            )
        return features
    features = values.reshape(rows, math.prod(values.shape[1:]))
    if features.shape[1] != width:
        raise ValueError(
            f"Expected {name} with {width} features in each row; got {features.shape[1]} in "
            f"{values.shape}: pass {name}_dim={features.shape[1]}, or an encoder"
        )
    return features.astype(dtype)


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

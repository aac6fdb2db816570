# SPDX-License-Identifier: MIT
"""The layers critics are made of."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Activation = type[torch.nn.Module] | Callable[[Tensor], Tensor]


class Elementwise(torch.nn.Module):
    """A function of a tensor as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(values)


def activated_layers(widths: Sequence[int], activation: Activation) -> list[torch.nn.Module]:
    """Activation and linear layer, in turn, from width to width."""
    layers: list[torch.nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers.append(activation() if isinstance(activation, type) else Elementwise(activation))
        layers.append(torch.nn.Linear(width_in, width_out))
    return layers


def encode(
    name: str,
    values: Shaped[Tensor, " rows *event"],
    width: int,
    encoder: torch.nn.Module | None,
    dtype: torch.dtype,
) -> Float[Tensor, " rows {width}"]:
    """Rows of `width` features: what the encoder makes, or the event dims flattened."""
    rows = values.shape[0]
    if encoder is not None:
        features: Tensor = encoder(values)
        if features.shape != (rows, width):
            raise ValueError(
                f"Expected {name}_encoder({name}) of shape ({rows}, {width}); got "
                f"{tuple(features.shape)}: {name}_dim is the width of the encoder's output"
            )
        return features
    features = values[:, None].flatten(1)
    if features.shape[1] != width:
        raise ValueError(
            f"Expected {name} with {width} features in each row; got {features.shape[1]} in "
            f"{tuple(values.shape)}: pass {name}_dim={features.shape[1]}, or an encoder"
        )
    return features.to(dtype)

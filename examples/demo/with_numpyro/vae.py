"""The user's side: an ordinary NumPyro model and guide, no wiser for the objective to come."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

Params = Any


class Network(Protocol):
    """A function with weights; a decoder scores codes, and may see the images too."""

    def init(self, rng_key: Array) -> Params:
        """Draw its weights."""

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """Apply it to arrays of shape (*batch, features)."""


@dataclass(frozen=True)
class VAE:
    """The variational autoencoder for images of counts of `demo.with_pyro.vae`, in NumPyro."""

    encoder: Network
    decoder: Network
    levels: int
    latent_dim: int

    def posterior(self, encoder: Params, images: Array) -> dist.Distribution:
        """q(z | x) for images of shape (*batch, pixels)."""
        loc, unconstrained = jnp.split(self.encoder.apply(encoder, images / self.levels), 2, -1)
        return dist.Normal(loc, self.scale(unconstrained)).to_event(1)

    def scale(self, unconstrained: Array) -> Array:
        """The scale of q(z | x)."""
        return jax.nn.softplus(unconstrained) + 1e-4

    # `images` is the whole data set and `rows` the minibatch: the plate scales the minibatch up, so
    # every loss is that of the whole data set.

    def model(self, images: Array, rows: Array) -> None:
        """Draw a code for every row, and score the row's image given its code."""
        decoder = numpyro.param("decoder", self.decoder.init)
        with minibatch("data", len(images), rows):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1))
            logits = self.decoder.apply(decoder, z, images[rows])
            likelihood = dist.Binomial(self.levels, logits=logits).to_event(1)
            numpyro.sample("x", likelihood, obs=images[rows])

    def guide(self, images: Array, rows: Array) -> None:
        """Draw a code for every row, given its image."""
        encoder = numpyro.param("encoder", self.encoder.init)
        with minibatch("data", len(images), rows):
            numpyro.sample("z", self.posterior(encoder, images[rows]))


@dataclass(frozen=True)
class MLP:
    """Layers with SiLU in between.

    Attributes:
        sizes: The numbers of inputs, of hidden units and of outputs.
    """

    sizes: tuple[int, ...]

    def init(self, rng_key: Array) -> Params:
        """Draw its weights as PyTorch draws them."""
        return init_layers(rng_key, list(pairwise(self.sizes)))

    def apply(self, params: Params, inputs: Array, images: Array | None = None) -> Array:
        """Apply the layers to the inputs alone, which may be codes, or images."""
        first, *rest = params
        outputs = linear(first, inputs)
        for layer in rest:
            outputs = linear(layer, jax.nn.silu(outputs))
        return outputs


def minibatch(name: str, size: int, rows: Array) -> numpyro.plate:
    """A plate of which the given rows are seen."""
    with handlers.substitute(data={name: rows}):
        return numpyro.plate(name, size, len(rows))


def init_layers(rng_key: Array, shapes: Sequence[tuple[int, ...]]) -> list[Params]:
    """Weights of layers, from the shapes of their kernels."""
    keys = jax.random.split(rng_key, len(shapes))
    return [init_linear(key, *shape) for key, shape in zip(keys, shapes, strict=True)]


def init_linear(rng_key: Array, *shape: int) -> Params:
    """Weights of one layer, whose outputs are the last of its kernel's axes."""
    bound = math.prod(shape[:-1]) ** -0.5
    kernel_key, bias_key = jax.random.split(rng_key)
    return {
        "kernel": jax.random.uniform(kernel_key, shape, minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, shape[-1:], minval=-bound, maxval=bound),
    }


def linear(params: Params, inputs: Array) -> Array:
    """Apply one layer."""
    return inputs @ params["kernel"] + params["bias"]

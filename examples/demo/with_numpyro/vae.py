"""The user's side: an ordinary NumPyro model and guide, no wiser for the objective to come."""

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


class Decoder(Protocol):
    """Logits of shape (*batch, pixels) from codes and images, which it may ignore."""

    def init(self, rng_key: Array) -> Params:
        """Draw its weights."""

    def apply(self, params: Params, z: Array, images: Array) -> Array:
        """Score the pixels under codes of shape (*batch, latent_dim)."""


@dataclass(frozen=True)
class VAE:
    """A variational autoencoder for images of counts.

    Every pixel counts the inked cells out of `levels`, so the likelihood is binomial (Bernoulli
    when `levels` is 1): a probability of the images themselves, in nats.

    Attributes:
        decoder: Makes logits of codes.
        pixels: Number of pixels of an image.
        levels: The greatest count a pixel can have.
        latent_dim: Number of dimensions of the code z.
        hidden: Width of the two hidden layers of the encoder.
    """

    decoder: Decoder
    pixels: int
    levels: int
    latent_dim: int
    hidden: int = 128

    def posterior(self, encoder: Params, images: Array) -> dist.Distribution:
        """q(z | x) for images of shape (*batch, pixels)."""
        loc, unconstrained_scale = jnp.split(mlp(encoder, images / self.levels), 2, axis=-1)
        return dist.Normal(loc, jax.nn.softplus(unconstrained_scale) + 1e-4).to_event(1)

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
        sizes = (self.pixels, self.hidden, self.hidden, 2 * self.latent_dim)
        encoder = numpyro.param("encoder", lambda rng_key: init_mlp(rng_key, sizes))
        with minibatch("data", len(images), rows):
            numpyro.sample("z", self.posterior(encoder, images[rows]))


@dataclass(frozen=True)
class MLPDecoder:
    """Logits of the pixels given the code alone.

    Attributes:
        pixels: Number of pixels of an image.
        latent_dim: Number of dimensions of the code.
        hidden: Width of the two hidden layers.
    """

    pixels: int
    latent_dim: int
    hidden: int = 128

    def init(self, rng_key: Array) -> Params:
        """Draw its weights."""
        return init_mlp(rng_key, (self.latent_dim, self.hidden, self.hidden, self.pixels))

    def apply(self, params: Params, z: Array, images: Array) -> Array:
        """Score the pixels under codes of shape (*batch, latent_dim)."""
        return mlp(params, z)


def minibatch(name: str, size: int, rows: Array) -> numpyro.plate:
    """A plate of which the given rows are seen."""
    with handlers.substitute(data={name: rows}):
        return numpyro.plate(name, size, len(rows))


def init_mlp(rng_key: Array, sizes: tuple[int, ...]) -> Params:
    """Weights of layers of the given sizes, drawn as PyTorch draws them."""
    keys = jax.random.split(rng_key, len(sizes) - 1)
    return [init_linear(key, *size) for key, size in zip(keys, pairwise(sizes), strict=True)]


def init_linear(rng_key: Array, inputs: int, outputs: int) -> Params:
    """Weights of one layer."""
    bound = inputs**-0.5
    kernel_key, bias_key = jax.random.split(rng_key)
    return {
        "kernel": jax.random.uniform(kernel_key, (inputs, outputs), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound),
    }


def linear(params: Params, inputs: Array) -> Array:
    """Apply one layer."""
    return inputs @ params["kernel"] + params["bias"]


def mlp(params: Params, inputs: Array) -> Array:
    """Apply layers with SiLU in between."""
    first, *rest = params
    outputs = linear(first, inputs)
    for layer in rest:
        outputs = linear(layer, jax.nn.silu(outputs))
    return outputs

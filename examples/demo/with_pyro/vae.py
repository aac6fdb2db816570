"""The user's side: an ordinary Pyro model and guide, no wiser for the objective to come."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class VAE(nn.Module):
    """A variational autoencoder for images of counts.

    Every pixel counts the inked cells out of `levels`, so the likelihood is binomial (Bernoulli
    when `levels` is 1): a probability of the images themselves, in nats.

    Args:
        encoder: A location and an unconstrained scale, side by side, of images of shape
            (*batch, pixels) with values from 0 to 1.
        decoder: Logits of shape (*batch, pixels) from codes of shape (*batch, latent_dim) and
            images, which it may ignore.
        levels: The greatest count a pixel can have.
        latent_dim: Number of dimensions of the code z.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, *, levels: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.levels = levels
        self.latent_dim = latent_dim
        self.decoder = decoder
        self.encoder = encoder

    def posterior(self, images: Tensor) -> dist.Independent:
        """q(z | x) for images of shape (*batch, pixels)."""
        loc, unconstrained = self.encoder(images / self.levels).chunk(2, dim=-1)
        return dist.Normal(loc, self.scale(unconstrained)).to_event(1)

    def scale(self, unconstrained: Tensor) -> Tensor:
        """The scale of q(z | x)."""
        return nn.functional.softplus(unconstrained) + 1e-4

    # `images` is the whole data set and `rows` the minibatch: the plate scales the minibatch up, so
    # every loss is that of the whole data set.

    def model(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, and score the row's image given its code."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images), subsample=rows):
            prior = dist.Normal(images.new_zeros(self.latent_dim), 1.0).to_event(1)
            logits = self.decoder(pyro.sample("z", prior), images[rows])
            likelihood = dist.Binomial(self.levels, logits=logits).to_event(1)
            pyro.sample("x", likelihood, obs=images[rows])

    def guide(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, given its image."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(images), subsample=rows):
            pyro.sample("z", self.posterior(images[rows]))


class MLP(nn.Sequential):
    """Layers with SiLU in between.

    Args:
        sizes: The numbers of inputs, of hidden units and of outputs.
    """

    def __init__(self, *sizes: int) -> None:
        layers = (nn.Linear(*size) for size in pairwise(sizes))
        super().__init__(*[part for layer in layers for part in (layer, nn.SiLU())][:-1])

    def forward(self, inputs: Tensor, images: Tensor | None = None) -> Tensor:
        """Apply the layers to the inputs alone, which may be codes, or images."""
        return super().forward(inputs)

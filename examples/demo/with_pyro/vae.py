"""The user's side: an ordinary Pyro model and guide, no wiser for the objective to come."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class VAE(nn.Module):
    """A variational autoencoder for images of counts.

    Every pixel counts the inked cells out of `levels`, so the likelihood is binomial (Bernoulli
    when `levels` is 1): a probability of the images themselves, in nats.

    Args:
        decoder: Logits of shape (*batch, pixels) from codes of shape (*batch, latent_dim) and
            images, which it may ignore.
        pixels: Number of pixels of an image.
        levels: The greatest count a pixel can have.
        latent_dim: Number of dimensions of the code z.
        hidden: Width of the two hidden layers of the encoder.
    """

    def __init__(
        self, decoder: nn.Module, *, pixels: int, levels: int, latent_dim: int, hidden: int = 128
    ) -> None:
        super().__init__()
        self.levels = levels
        self.latent_dim = latent_dim
        self.decoder = decoder
        self.encoder = mlp(pixels, hidden, 2 * latent_dim)

    def prior(self, like: Tensor) -> dist.Independent:
        """p(z): a standard normal, on the device and of the dtype of `like`."""
        return dist.Normal(like.new_zeros(self.latent_dim), 1.0).to_event(1)

    def likelihood(self, z: Tensor, images: Tensor) -> dist.Independent:
        """p(x | z) for codes of shape (*batch, latent_dim)."""
        return dist.Binomial(self.levels, logits=self.decoder(z, images)).to_event(1)

    def posterior(self, images: Tensor) -> dist.Independent:
        """q(z | x) for images of shape (*batch, pixels)."""
        loc, unconstrained_scale = self.encoder(images / self.levels).chunk(2, dim=-1)
        scale = nn.functional.softplus(unconstrained_scale) + 1e-4
        return dist.Normal(loc, scale).to_event(1)

    # `images` is the whole data set and `rows` the minibatch: the plate scales the minibatch up, so
    # every loss is that of the whole data set.

    def model(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, and score the row's image given its code."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images), subsample=rows):
            z = pyro.sample("z", self.prior(images))
            pyro.sample("x", self.likelihood(z, images[rows]), obs=images[rows])

    def guide(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, given its image."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(images), subsample=rows):
            pyro.sample("z", self.posterior(images[rows]))


class Decoder(nn.Module):
    """Logits of the pixels given the code alone.

    Args:
        pixels: Number of pixels of an image.
        latent_dim: Number of dimensions of the code.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, *, pixels: int, latent_dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.layers = mlp(latent_dim, hidden, pixels)

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        """Score the pixels under codes of shape (*batch, latent_dim)."""
        return self.layers(z)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )

"""The user's side: an ordinary Pyro model and guide, no wiser for the objective to come."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution


class VAE(nn.Module):
    """A variational autoencoder for images of counts.

    Every pixel counts the inked cells out of `levels`, so the likelihood is binomial (Bernoulli
    when `levels` is 1): a probability of the images themselves, in nats.

    Args:
        pixels: Number of pixels of an image.
        levels: The greatest count a pixel can have.
        latent_dim: Number of dimensions of the code z.
        hidden: Width of the two hidden layers of encoder and decoder.
    """

    def __init__(self, *, pixels: int, levels: int, latent_dim: int = 2, hidden: int = 128) -> None:
        super().__init__()
        self.levels = levels
        self.latent_dim = latent_dim
        self.encoder = mlp(pixels, hidden, 2 * latent_dim)
        self.decoder = mlp(latent_dim, hidden, pixels)

    def prior(self, like: Tensor) -> Distribution:
        """p(z): a standard normal, on the device and of the dtype of `like`."""
        return dist.Normal(like.new_zeros(self.latent_dim), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x | z) for codes of shape (*batch, latent_dim)."""
        return dist.Binomial(self.levels, logits=self.decoder(z)).to_event(1)

    def posterior(self, images: Tensor) -> Distribution:
        """q(z | x) for images of shape (*batch, pixels)."""
        loc, unconstrained_scale = self.encoder(images / self.levels).chunk(2, dim=-1)
        return dist.Normal(loc, nn.functional.softplus(unconstrained_scale)).to_event(1)

    # `images` is the whole data set and `rows` the minibatch: the plate scales the minibatch up, so
    # every loss is that of the whole data set.

    def model(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, and score the row's image given its code."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images), subsample=rows):
            z = pyro.sample("z", self.prior(images))
            pyro.sample("x", self.likelihood(z), obs=images[rows])

    def guide(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, given its image."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(images), subsample=rows):
            pyro.sample("z", self.posterior(images[rows]))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )

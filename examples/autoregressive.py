"""A variational autoencoder whose decoder can do without the code."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from demo.vae import mlp

CODE_SCALE = 0.1


class MaskedLinear(nn.Linear):
    """A linear layer some of whose weights are 0.

    Args:
        mask: Which weights are not, of shape (outputs, inputs).
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer."""
        return linear(inputs, self.mask * self.weight, self.bias)


class Decoder(nn.Module):
    """Logits of every pixel given the pixels before it, and the code.

    The code comes in through weights that start small. The pixels have a masked autoencoder to
    themselves: "MADE: Masked Autoencoder for Distribution Estimation", arXiv 1502.03509.

    Args:
        pixels: Number of pixels of an image.
        latent_dim: Number of dimensions of the code.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, *, pixels: int, latent_dim: int, hidden: int = 64) -> None:
        super().__init__()
        pixel = torch.arange(pixels)
        last_seen = torch.arange(hidden) % (pixels - 1)
        self.first = MaskedLinear(last_seen[:, None] >= pixel)
        self.second = MaskedLinear(last_seen[:, None] >= last_seen)
        self.third = MaskedLinear(pixel[:, None] > last_seen)
        self.direct = MaskedLinear(pixel[:, None] > pixel)
        self.code = nn.Linear(latent_dim, hidden, bias=False)
        with torch.no_grad():
            self.code.weight.mul_(CODE_SCALE)

    def forward(self, images: Tensor, z: Tensor) -> Tensor:
        """Score images of shape (*batch, pixels) under codes of shape (*batch, latent_dim)."""
        hidden = silu(self.first(images) + self.code(z))
        return self.third(silu(self.second(hidden))) + self.direct(images)


class AutoregressiveVAE(nn.Module):
    """An ordinary Pyro model and guide, for binary images.

    Args:
        pixels: Number of pixels of an image.
        latent_dim: Number of dimensions of the code z.
    """

    def __init__(self, *, pixels: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = Decoder(pixels=pixels, latent_dim=latent_dim)
        self.encoder = mlp(pixels, 128, 2 * latent_dim)

    def prior(self, like: Tensor) -> dist.Independent:
        """p(z): a standard normal, on the device and of the dtype of `like`."""
        return dist.Normal(like.new_zeros(self.latent_dim), 1.0).to_event(1)

    def posterior(self, images: Tensor) -> dist.Independent:
        """q(z | x) for images of shape (*batch, pixels)."""
        loc, unconstrained_scale = self.encoder(images).chunk(2, dim=-1)
        return dist.Normal(loc, softplus(unconstrained_scale) + 1e-4).to_event(1)

    def likelihood(self, images: Tensor, z: Tensor) -> dist.Independent:
        """p(x | z), for images whose pixels are known up to the one to predict."""
        return dist.Bernoulli(logits=self.decoder(images, z)).to_event(1)

    def model(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, and score the row's image given its code."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images), subsample=rows):
            z = pyro.sample("z", self.prior(images))
            pyro.sample("x", self.likelihood(images[rows], z), obs=images[rows])

    def guide(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, given its image."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(images), subsample=rows):
            pyro.sample("z", self.posterior(images[rows]))

"""Encoder and decoder in Pyro."""

from itertools import pairwise
from math import prod

from torch import Tensor, nn

from demo.with_pyro.vae import VAE
from hvae_images_parts.methods import Net


def build(side: int, net: Net) -> VAE:
    """The demo's model and guide, with other networks."""
    return VAE(encoder(side, net), Decoder(side, net), levels=1, latent_dim=net.latent_dim)


class Decoder(nn.Module):
    """Logits of the pixels given codes of shape (*batch, latent_dim)."""

    def __init__(self, side: int, net: Net) -> None:
        super().__init__()
        self.layers = decoder(side, net)

    def forward(self, z: Tensor, images: Tensor | None = None) -> Tensor:
        """Apply the layers to the codes alone."""
        return self.layers(z.flatten(0, -2)).reshape(*z.shape[:-1], -1)


def encoder(side: int, net: Net) -> nn.Sequential:
    """Images of shape (n, pixels) to a mean and an unconstrained scale."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
    for inputs, outputs in pairwise((1, *net.channels)):
        layers += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), nn.Softplus()]
    features = (1, *net.channels)[-1] * net.sides(side)[-1] ** 2
    layers += [nn.Flatten(), nn.Linear(features, net.hidden), nn.Softplus()]
    return nn.Sequential(*layers, nn.Linear(net.hidden, 2 * net.latent_dim))


def decoder(side: int, net: Net) -> nn.Sequential:
    """Codes of shape (n, latent_dim) to logits of the pixels: the encoder mirrored."""
    sides = net.sides(side)
    channels = (1, *net.channels)[::-1]
    shape = (channels[0], sides[-1], sides[-1])
    layers = [
        nn.Linear(net.latent_dim, net.hidden),
        nn.Softplus(),
        nn.Linear(net.hidden, prod(shape)),
        nn.Unflatten(1, shape),
    ]
    for (inputs, outputs), (small, large) in zip(
        pairwise(channels), pairwise(sides[::-1]), strict=True
    ):
        beyond = large - (2 * small - 1)
        upward = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=beyond)
        layers += [nn.Softplus(), upward]
    return nn.Sequential(*layers, nn.Flatten())

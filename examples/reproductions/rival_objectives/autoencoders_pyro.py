"""The autoencoder in Pyro, from and to the weights of any library."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from demo.with_pyro.training import Training
from demo.with_pyro.vae import MLP, VAE
from rival_objectives.autoencoders import LATENTS, Layers, Weights


class LogVarianceVAE(VAE):
    """The demo's, whose encoder ends in means and log variances."""

    def posterior(self, images: Tensor) -> dist.Independent:
        """q(z | x)."""
        loc, log_variance = self.encoder(images).chunk(2, -1)
        return dist.Normal(loc, (log_variance / 2).exp()).to_event(1)


def build(weights: Weights) -> LogVarianceVAE:
    """Model and guide with these weights."""
    networks = network(weights.encoder), network(weights.decoder)
    return LogVarianceVAE(*networks, levels=1, latent_dim=LATENTS)


def weights_of(training: Training) -> Weights:
    """As they are now."""
    return Weights(layers(training.vae.encoder), layers(training.vae.decoder))


def network(weights: Layers) -> MLP:
    """Linear layers with SiLU in between."""
    found = MLP(weights[0][0].shape[0], *(len(bias) for _, bias in weights))
    linears = (module for module in found if isinstance(module, nn.Linear))
    for linear, (kernel, bias) in zip(linears, weights, strict=True):
        linear.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
    return found


def layers(network: nn.Module) -> Layers:
    """What `network` is made of."""
    return [
        (module.weight.detach().numpy().T.copy(), module.bias.detach().numpy().copy())
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]

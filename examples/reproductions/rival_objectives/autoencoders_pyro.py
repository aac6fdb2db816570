"""The autoencoder's networks in Pyro, from and to the weights of any library."""

import torch
from torch import nn

from demo.with_pyro.training import Training
from demo.with_pyro.vae import MLP
from rival_objectives.autoencoders import Layers, Weights


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


def weights_of(training: Training) -> Weights:
    """As they are now."""
    return Weights(layers(training.vae.encoder), layers(training.vae.decoder))

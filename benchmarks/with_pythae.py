"""Training steps of pythae, an optional rival: ``pip install pythae``."""

from __future__ import annotations

import warnings

import torch
from pythae import models
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from benchmarks.measuring import Step
from benchmarks.networks import VAE, Size

METHODS = {
    "MMD": ("VAE", "InfoVAE_MMD"),
    "MMD of seven IMQ kernels": ("InfoVAE_MMD by default",),
    "Hamiltonian": ("HVAE",),
}
"""What is comparable to an objective of ours."""


class Encoder(BaseEncoder):
    """The encoder of ours."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.hidden, self.loc, self.log_scale = vae.encoder, vae.loc, vae.log_scale

    def forward(self, x: Tensor) -> ModelOutput:
        """Locations and log variances of the codes."""
        hidden = self.hidden(x)
        return ModelOutput(embedding=self.loc(hidden), log_covariance=2 * self.log_scale(hidden))


class Decoder(BaseDecoder):
    """The decoder of ours, which gives the probabilities or, as HVAE wants them, the logits."""

    def __init__(self, vae: VAE, last: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(vae.decoder, last)

    def forward(self, z: Tensor) -> ModelOutput:
        """What the loss takes as reconstruction."""
        return ModelOutput(reconstruction=self.layers(z))


def step_by_pythae(method: str, size: Size, x: Tensor, *, lambd: float, num_steps: int) -> Step:
    """What pythae's trainer does with a minibatch: forward, backward, Adam, loss as a number."""
    model = _model(method, size, lambd=lambd, num_steps=num_steps).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = {"data": x}

    def step() -> float:
        loss = model(inputs).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _model(method: str, size: Size, *, lambd: float, num_steps: int) -> models.BaseAE:
    vae = VAE(size)
    widths = {"input_dim": (size.pixels,), "latent_dim": size.latent}
    likelihood = {"reconstruction_loss": "bce"}
    if method == "HVAE":
        config = models.HVAEConfig(
            **widths, **likelihood, n_lf=num_steps, eps_lf=0.05, beta_zero=0.5
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Carefull")  # it is told below: logits
            return models.HVAE(config, Encoder(vae), Decoder(vae, nn.Identity()))
    parts = Encoder(vae), Decoder(vae, nn.Sigmoid())
    if method == "VAE":
        return models.VAE(models.VAEConfig(**widths, **likelihood), *parts)
    kernel = "imq" if method == "InfoVAE_MMD by default" else "rbf"
    config = models.INFOVAE_MMD_Config(**widths, **likelihood, lbd=lambd, kernel_choice=kernel)
    return models.INFOVAE_MMD(config, *parts)

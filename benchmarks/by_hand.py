"""Training steps that one writes in PyTorch alone, for the same networks and objectives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.measuring import Step
from benchmarks.networks import VAE, Size

Optim = Callable[[list[Tensor]], torch.optim.Optimizer]


def step_by_hand(objective: str, size: Size, x: Tensor, *, optim: Optim, lambd: float) -> Step:
    """A step of ``"MMD"`` or ``"InfoMax"``."""
    vae = VAE(size)
    critic = nn.Sequential(
        nn.Linear(size.pixels + size.latent, size.hidden), nn.ReLU(), nn.Linear(size.hidden, 1)
    )
    modules = nn.ModuleList([vae, critic] if objective == "InfoMax" else [vae])
    optimiser = optim(list(modules.parameters()))
    rows = len(x)

    def loss_of(z: Tensor, elbo: Tensor) -> tuple[Tensor, Tensor]:
        if objective == "MMD":
            loss = elbo + rows * (lambd - 1) * mmd_squared(z, torch.randn_like(z))
            return loss, loss
        # The critic's gradient is that of the information, the encoder's is `rows` times it.
        scaled = z + (rows - 1) * (z - z.detach())
        shifted = scaled.roll(int(torch.randint(1, rows, ())), 0)
        joint, marginal = (critic(torch.cat([x, code], 1)) for code in (scaled, shifted))
        information = joint.mean() - (marginal - 1).exp().mean()
        return elbo - information, elbo - rows * information

    def step() -> float:
        elbo, z = elbo_and_code(vae, x)
        surrogate, loss = loss_of(z, elbo)
        optimiser.zero_grad()
        surrogate.backward()
        optimiser.step()
        return loss.item()

    return step


def elbo_and_code(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ELBO with its KL in closed form, and a draw of the codes."""
    hidden = vae.encoder(x)
    loc, log_scale = vae.loc(hidden), vae.log_scale(hidden)
    scale = log_scale.exp()
    z = loc + scale * torch.randn_like(loc)
    kl = (0.5 * (loc**2 + scale**2 - 1) - log_scale).sum()
    return binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="sum") + kl, z


def mmd_squared(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimator with an RBF kernel of lengthscale √d, by one matrix product.

    Row i of x is left out against row i of y too, as the objective does.
    """
    n, d = x.shape
    rows = torch.cat([x, y])
    squares = (rows**2).sum(1)
    distances = (squares[:, None] + squares - 2 * rows @ rows.T).clamp_min(0.0)
    kernel = (-distances / (2 * d)).exp()

    def mean(block: Tensor) -> Tensor:
        return (block.sum() - block.diagonal().sum()) / (n * (n - 1))

    return mean(kernel[:n, :n]) + mean(kernel[n:, n:]) - 2 * mean(kernel[:n, n:])

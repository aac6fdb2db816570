"""The training with Pyro."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.functional import softplus

from hvae_images_parts.data import Images
from hvae_images_parts.methods import BATCH, STEP_SIZE, Method, Net, Setting, Snapshot
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.diagnostics import log_evidence


class VAE(nn.Module):
    """A variational autoencoder for binary images.

    Args:
        side: Height and width of an image.
        net: The size of encoder and decoder.
    """

    def __init__(self, side: int, net: Net) -> None:
        super().__init__()
        self.latent_dim = net.latent_dim
        self.encoder = encoder(side, net)
        self.decoder = decoder(side, net)

    def model(self, images: Tensor) -> None:
        """Draw a code for every image, and score the image given its code."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images)):
            z = pyro.sample("z", dist.Normal(images.new_zeros(self.latent_dim), 1.0).to_event(1))
            logits = self.decoder(z.flatten(0, -2)).reshape(*z.shape[:-1], -1)
            likelihood = dist.Bernoulli(logits=logits, validate_args=False)
            pyro.sample("x", likelihood.to_event(1), obs=images)

    def guide(self, images: Tensor) -> None:
        """Draw a code for every image, given the image."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(images)):
            loc, scale = self.encoder(images).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, softplus(scale) + 1e-4).to_event(1))


def encoder(side: int, net: Net) -> nn.Sequential:
    """Images of shape (n, pixels) to a mean and an unconstrained scale."""
    layers, size = [nn.Unflatten(1, (1, side, side))], side
    for inputs, outputs in pairwise((1, *net.channels)):
        layers += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), nn.Softplus()]
        size = (size + 1) // 2
    features = (1, *net.channels)[-1] * size**2
    layers += [nn.Flatten(), nn.Linear(features, net.hidden), nn.Softplus()]
    return nn.Sequential(*layers, nn.Linear(net.hidden, 2 * net.latent_dim))


def decoder(side: int, net: Net) -> nn.Sequential:
    """Codes of shape (n, latent_dim) to logits of the pixels: the encoder mirrored."""
    sides = [side]
    for _ in net.channels:
        sides.append((sides[-1] + 1) // 2)
    channels = (1, *net.channels)[::-1]
    shape = (channels[0], sides[-1], sides[-1])
    layers = [
        nn.Linear(net.latent_dim, net.hidden),
        nn.Softplus(),
        nn.Linear(net.hidden, int(np.prod(shape))),
        nn.Unflatten(1, shape),
    ]
    for (inputs, outputs), (small, large) in zip(
        pairwise(channels), pairwise(sides[::-1]), strict=True
    ):
        beyond = large - (2 * small - 1)
        upward = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=beyond)
        layers += [nn.Softplus(), upward]
    return nn.Sequential(*layers, nn.Flatten())


def train(
    method: Method, images: Images, setting: Setting, checkpoints: Sequence[int], seed: int
) -> Iterator[Snapshot]:
    """Train, and tell after some numbers of steps what has been learned."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    device = setting.device
    with torch.device(device):
        vae, elbo = VAE(images.side, setting.net), objective(method, setting.net)
    intensities, test = (torch.as_tensor(x).to(device) for x in (images.train, images.test))
    optim = partial(torch.optim.Adamax, lr=setting.learning_rate)
    svi = CompiledSVI(vae.model, vae.guide, optim, loss=elbo)
    taken = 0
    for steps in checkpoints:
        for _ in range(steps - taken):
            rows = torch.randint(len(intensities), (BATCH,), device=device)
            svi.step(torch.bernoulli(intensities[rows]))
        taken = steps
        yield look(vae, elbo, test, steps, setting.draws)


def look(
    vae: VAE,
    elbo: TraceHamiltonian_ELBO | TraceMeanField_ELBO,
    test: Tensor,
    steps: int,
    draws: int,
) -> Snapshot:
    """What has been learned by now."""
    weigh = partial(log_evidence, vae.model, vae.guide, test, num_samples=draws)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        encoder = weigh().log_weights.double().cpu().numpy()
        if not isinstance(elbo, TraceHamiltonian_ELBO):
            return Snapshot(steps, encoder, encoder)
        own = weigh(elbo=elbo).log_weights.double().cpu().numpy()
    flow = elbo.flow()
    return Snapshot(
        steps,
        own,
        encoder,
        step_size=float(flow.step_size.detach().mean()),
        beta_0=float(flow.inverse_temperatures[0].detach()),
    )


def objective(method: Method, net: Net) -> TraceHamiltonian_ELBO | TraceMeanField_ELBO:
    """The loss; a flow has a step size per dimension, and per step where tempering is free."""
    if method.num_steps == 0:
        return TraceMeanField_ELBO(max_plate_nesting=1)
    per_step = method.tempering == "free"
    shape = (method.num_steps, net.latent_dim) if per_step else (net.latent_dim,)
    return TraceHamiltonian_ELBO(
        method.num_steps,
        torch.full(shape, STEP_SIZE),
        beta_0=method.beta_0,
        tempering=method.tempering,
        per_step=per_step,
        max_plate_nesting=1,
    )

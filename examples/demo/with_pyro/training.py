"""Training and measuring with Pyro: SVI, whatever the objective."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from pyro.optim import Adam
from torch import Tensor

from demo import backend
from demo.backend import Setting
from demo.with_pyro.autoregressive import AutoregressiveDecoder
from demo.with_pyro.vae import MLP, VAE
from pyro_infovae import diagnostics
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared

HIDDEN = 128
OPTIMISERS = {"adam": partial(torch.optim.Adam, fused=True), "adamax": torch.optim.Adamax}


def start(
    objective: Callable[[], ELBO],
    images: np.ndarray,
    setting: Setting,
    build: Callable[[Setting], VAE] | None = None,
) -> "Training":
    """A training that has taken no step yet; weights start as under any other objective."""
    pyro.clear_param_store()
    pyro.set_rng_seed(setting.seed)
    with torch.device(setting.device or "cpu"):
        vae = (build or build_vae)(setting)
        elbo = objective()
        pyro.set_rng_seed(setting.seed)
        return Training(vae, elbo, torch.as_tensor(images), setting)


def build_vae(setting: Setting, kind: type[VAE] = VAE) -> VAE:
    """The model and the guide."""
    decoder = (
        AutoregressiveDecoder(pixels=setting.pixels, latent_dim=setting.latent_dim)
        if setting.autoregressive
        else MLP(setting.latent_dim, HIDDEN, HIDDEN, setting.pixels)
    )
    encoder = MLP(setting.pixels, HIDDEN, HIDDEN, 2 * setting.latent_dim)
    return kind(encoder, decoder, levels=setting.levels, latent_dim=setting.latent_dim)


class Training(backend.Training):
    """Steps are Pyro's own, or captured and replayed where the setting says so."""

    diagnostics = diagnostics

    def __init__(self, vae: VAE, objective: ELBO, images: Tensor, setting: Setting) -> None:
        self.vae, self.objective = vae, objective
        self.model, self.guide = vae.model, vae.guide
        self.device = next(vae.parameters()).device
        self.images = images.to(self.device)
        if setting.compiled:
            optim = partial(OPTIMISERS[setting.optimiser], lr=setting.learning_rate)
            self.svi = CompiledSVI(self.model, self.guide, optim, loss=objective)
        else:
            adam = Adam({"lr": setting.learning_rate})
            self.svi = SVI(self.model, self.guide, adam, loss=objective)

    def step(self, images: np.ndarray | Tensor, rows: np.ndarray) -> float:
        """Take a step on rows of some images; the loss in nats, of all of these images."""
        return self.svi.step(self._tensor(images), self._tensor(rows))

    @torch.no_grad()
    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of q(z|x)."""
        posterior = self.vae.posterior(self._tensor(images))
        return posterior.mean.cpu().numpy(), posterior.stddev.cpu().numpy()

    @torch.no_grad()
    def logits(self, z: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Logits of p(x|z)."""
        return self.vae.decoder(self._tensor(z), self._tensor(images)).cpu().numpy()

    @torch.no_grad()
    def loss(self, images: np.ndarray) -> float:
        """The objective's own loss."""
        return self.objective.loss(self.model, self.guide, *self.all_of(images))

    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        """The MMD² of two samples."""
        return mmd_squared(self._tensor(x), self._tensor(y), RBF()).item()

    def all_of(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """The images and the numbers of all their rows."""
        return self._tensor(images), torch.arange(len(images), device=self.device)

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(array, device=self.device)

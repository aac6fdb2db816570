"""Training and measuring with Pyro: stock SVI, whatever the objective."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from pyro.optim import Adam
from torch import Tensor

from demo.backend import Setting
from demo.with_pyro.autoregressive import AutoregressiveDecoder
from demo.with_pyro.vae import VAE, Decoder
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.diagnostics import Evidence, aggregated_posterior, log_evidence
from pyro_infovae.kernels import RBF
from pyro_infovae.mmd import mmd_squared


def start(objective: Callable[[], ELBO], images: np.ndarray, setting: Setting) -> "Training":
    """A training that has taken no step yet; weights start as under any other objective."""
    pyro.clear_param_store()
    pyro.set_rng_seed(setting.seed)
    with torch.device(setting.device or "cpu"):
        vae = build_vae(setting)
        elbo = objective()
        pyro.set_rng_seed(setting.seed)
        return Training(vae, elbo, torch.as_tensor(images), setting.learning_rate)


def build_vae(setting: Setting) -> VAE:
    """The model and the guide."""
    decoder = AutoregressiveDecoder if setting.autoregressive else Decoder
    return VAE(
        decoder(pixels=setting.pixels, latent_dim=setting.latent_dim),
        pixels=setting.pixels,
        levels=setting.levels,
        latent_dim=setting.latent_dim,
    )


class Training:
    """A model, a guide and an objective.

    Args:
        vae: Holds model and guide.
        objective: The loss that `SVI` descends.
        images: All training images, of shape (n, pixels).
        learning_rate: Adam's.
    """

    def __init__(self, vae: VAE, objective: ELBO, images: Tensor, learning_rate: float) -> None:
        self.vae = vae
        self.objective = objective
        self.device = next(vae.parameters()).device
        self.images = images.to(self.device)
        self.svi = SVI(vae.model, vae.guide, Adam({"lr": learning_rate}), loss=objective)

    def epoch(self, minibatches: Sequence[np.ndarray]) -> float:
        """Take a step per minibatch; the loss averaged over the rows."""
        loss = 0.0
        for rows in minibatches:
            loss += self.svi.step(self.images, self._tensor(rows)) * len(rows)
        return loss / len(self.images)

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
        return self.objective.loss(self.vae.model, self.vae.guide, *self._all(images))

    def log_evidence(self, images: np.ndarray, *, num_samples: int) -> Evidence:
        """Estimates of log p(x)."""
        flow = getattr(self.objective, "base", self.objective)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the table says it
            return log_evidence(
                self.vae.model,
                self.vae.guide,
                *self._all(images),
                num_samples=num_samples,
                elbo=flow if isinstance(flow, TraceHamiltonian_ELBO) else None,
            )

    def information(self, images: np.ndarray) -> float:
        """The mutual information of these images and their codes."""
        codes = aggregated_posterior(self.vae.model, self.vae.guide, *self._all(images))
        return codes.mutual_information

    def mmd_squared(self, x: np.ndarray, y: np.ndarray) -> float:
        """The MMD² of two samples."""
        return mmd_squared(self._tensor(x), self._tensor(y), RBF()).item()

    def _all(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._tensor(images), torch.arange(len(images), device=self.device)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

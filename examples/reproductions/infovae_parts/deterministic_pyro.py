"""The demo's model in Pyro, with a guide that gives every image one code."""

import pyro.distributions as dist
from torch import Tensor

from demo.backend import Setting
from demo.with_pyro.training import build_vae
from demo.with_pyro.vae import VAE


class DeterministicVAE(VAE):
    """Its guide is a point mass where the demo has the mean of q(z|x)."""

    def posterior(self, images: Tensor) -> dist.Delta:
        """The point mass."""
        return dist.Delta(super().posterior(images).mean, event_dim=1)


def build(setting: Setting) -> DeterministicVAE:
    """Model and guide."""
    return build_vae(setting, DeterministicVAE)

"""The demo's model in NumPyro, with a guide that gives every image one code."""

import numpyro.distributions as dist
from jax import Array

from demo.backend import Setting
from demo.with_numpyro.training import build_vae
from demo.with_numpyro.vae import VAE, Params


class DeterministicVAE(VAE):
    """Its guide is a point mass where the demo has the mean of q(z|x)."""

    def posterior(self, encoder: Params, images: Array) -> dist.Delta:
        """The point mass."""
        return dist.Delta(super().posterior(encoder, images).mean, event_dim=1)


def build(setting: Setting) -> DeterministicVAE:
    """Model and guide."""
    return build_vae(setting, DeterministicVAE)

"""The demo with NumPyro."""

import importlib.metadata

from numpyro.infer import TraceMeanField_ELBO

from demo.backend import BackendError
from demo.with_numpyro.training import build_vae, start
from demo.with_numpyro.vae import VAE
from halves.with_numpyro import dist, xp
from numpyro_backend import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO


def check_device(name: str | None) -> None:
    """Refuse a device: JAX takes the one it finds."""
    if name is not None:
        raise BackendError(
            f"Expected no --device with --backend numpyro; got {name!r}: JAX takes the best one it "
            "finds, or that of the environment variable JAX_PLATFORMS"
        )


def versions() -> dict[str, str]:
    """The versions of the packages used."""
    return {name: importlib.metadata.version(name) for name in ("numpyro", "jax")}

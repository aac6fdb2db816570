"""The demo with Pyro."""

import importlib.metadata

import torch
from pyro.infer import TraceMeanField_ELBO

from demo.backend import BackendError
from demo.with_pyro.training import build_vae, start
from demo.with_pyro.vae import VAE
from halves.with_pyro import dist, xp
from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO


def check_device(name: str | None) -> None:
    """Refuse a device that this build of PyTorch cannot use."""
    try:
        torch.zeros(1, device=name).cpu()
    except (AssertionError, RuntimeError) as error:
        raise BackendError(
            f"Expected a device that this build of PyTorch can use; got {name!r}"
        ) from error


def versions() -> dict[str, str]:
    """The versions of the packages used."""
    return {name: importlib.metadata.version(name) for name in ("pyro-ppl", "torch")}

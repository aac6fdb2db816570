# SPDX-License-Identifier: MIT
"""InfoVAE, InfoMax and Hamiltonian objectives for NumPyro's SVI."""

from numpyro_backend.critics import ConcatCritic as ConcatCritic
from numpyro_backend.critics import SeparableCritic as SeparableCritic
from numpyro_backend.inference_data import to_inference_data as to_inference_data
from numpyro_backend.kernels import IMQ as IMQ
from numpyro_backend.kernels import RBF as RBF
from numpyro_backend.mmd import mmd_squared as mmd_squared
from numpyro_backend.mmd import mmd_squared_normal as mmd_squared_normal
from numpyro_backend.svi import SVI as SVI
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO as TraceHamiltonian_ELBO
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO as TraceInfoMax_ELBO
from numpyro_backend.trace_mmd_elbo import TraceMMD_ELBO as TraceMMD_ELBO

__version__ = "0.1.0.dev0"

__all__ = [
    "IMQ",
    "RBF",
    "SVI",
    "ConcatCritic",
    "SeparableCritic",
    "TraceHamiltonian_ELBO",
    "TraceInfoMax_ELBO",
    "TraceMMD_ELBO",
    "mmd_squared",
    "mmd_squared_normal",
    "to_inference_data",
]

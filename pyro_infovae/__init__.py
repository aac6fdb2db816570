# SPDX-License-Identifier: MIT
"""InfoVAE, InfoMax and Hamiltonian objectives for Pyro's SVI."""

from pyro_infovae.critics import ConcatCritic as ConcatCritic
from pyro_infovae.critics import SeparableCritic as SeparableCritic
from pyro_infovae.inference_data import to_inference_data as to_inference_data
from pyro_infovae.kernels import IMQ as IMQ
from pyro_infovae.kernels import RBF as RBF
from pyro_infovae.mmd import mmd_squared as mmd_squared
from pyro_infovae.mmd import mmd_squared_normal as mmd_squared_normal
from pyro_infovae.trace_hamiltonian_elbo import TraceHamiltonian_ELBO as TraceHamiltonian_ELBO
from pyro_infovae.trace_infomax_elbo import TraceInfoMax_ELBO as TraceInfoMax_ELBO
from pyro_infovae.trace_mmd_elbo import TraceMMD_ELBO as TraceMMD_ELBO

__version__ = "0.1.0.dev0"

__all__ = [
    "IMQ",
    "RBF",
    "ConcatCritic",
    "SeparableCritic",
    "TraceHamiltonian_ELBO",
    "TraceInfoMax_ELBO",
    "TraceMMD_ELBO",
    "mmd_squared",
    "mmd_squared_normal",
    "to_inference_data",
]

"""InfoVAE, InfoMax and Hamiltonian objectives for Pyro's SVI."""

from pyro_infovae.kernels import IMQ as IMQ
from pyro_infovae.kernels import RBF as RBF
from pyro_infovae.trace_mmd_elbo import TraceMMD_ELBO as TraceMMD_ELBO

__version__ = "0.1.0.dev0"

__all__ = ["IMQ", "RBF", "TraceMMD_ELBO"]

"""InfoVAE, InfoMax and Hamiltonian objectives for NumPyro's SVI."""

from numpyro_backend.kernels import IMQ as IMQ
from numpyro_backend.kernels import RBF as RBF
from numpyro_backend.mmd import mmd_squared as mmd_squared
from numpyro_backend.mmd import mmd_squared_normal as mmd_squared_normal
from numpyro_backend.svi import SVI as SVI
from numpyro_backend.trace_mmd_elbo import TraceMMD_ELBO as TraceMMD_ELBO

__version__ = "0.1.0.dev0"

__all__ = ["IMQ", "RBF", "SVI", "TraceMMD_ELBO", "mmd_squared", "mmd_squared_normal"]

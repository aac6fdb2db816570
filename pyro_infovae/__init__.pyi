# SPDX-License-Identifier: MIT
from . import critics as critics
from . import diagnostics as diagnostics
from . import kernels as kernels
from . import mmd as mmd
from . import mutual_information as mutual_information
from . import tempering as tempering
from .critics import ConcatCritic as ConcatCritic
from .critics import SeparableCritic as SeparableCritic
from .inference_data import to_inference_data as to_inference_data
from .kernels import IMQ as IMQ
from .kernels import RBF as RBF
from .mmd import mmd_squared as mmd_squared
from .mmd import mmd_squared_normal as mmd_squared_normal
from .trace_hamiltonian_elbo import TraceHamiltonian_ELBO as TraceHamiltonian_ELBO
from .trace_infomax_elbo import TraceInfoMax_ELBO as TraceInfoMax_ELBO
from .trace_mmd_elbo import TraceMMD_ELBO as TraceMMD_ELBO

__version__: str

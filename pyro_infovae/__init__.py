# SPDX-License-Identifier: MIT
"""InfoVAE, InfoMax and Hamiltonian objectives for Pyro's SVI."""

import lazy_loader

__version__ = "0.1.0.dev0"

# Loaded when they are first used: the NumPyro half shares this package's core and needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

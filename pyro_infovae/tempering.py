# SPDX-License-Identifier: MIT
"""Inverse temperatures of a tempered Hamiltonian flow."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._core import tempering as _shared
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.tempering import Tempering, free_inverse_temperatures

__all__ = ["Tempering", "free_inverse_temperatures", "inverse_temperatures"]

__doc__ = _shared.__doc__


@documented(_shared.INVERSE_TEMPERATURES)
def inverse_temperatures(
    beta_0: float | Float[Tensor, ""], num_steps: int, tempering: Tempering = "quadratic"
) -> Float[Tensor, " num_steps+1"]:
    """Inverse temperatures of ``num_steps`` tempered leapfrog steps.

    Example:
        >>> inverse_temperatures(0.25, 2)
        tensor([0.2500, 0.3265, 1.0000])
    """
    _shared.check_beta_0(beta_0)
    if not isinstance(beta_0, Tensor):
        beta_0 = torch.tensor(beta_0, dtype=torch.get_default_dtype())
    return _shared.inverse_temperatures(beta_0, num_steps, tempering)

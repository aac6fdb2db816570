# SPDX-License-Identifier: MIT
"""Inverse temperatures of a tempered Hamiltonian flow."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from pyro_infovae._core import tempering as _shared
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.tempering import Tempering, free_inverse_temperatures

__all__ = ["Tempering", "free_inverse_temperatures", "inverse_temperatures"]

__doc__ = _shared.__doc__


@documented(_shared.INVERSE_TEMPERATURES)
def inverse_temperatures(
    beta_0: float | Float[Array, ""], num_steps: int, tempering: Tempering = "quadratic"
) -> Float[Array, " num_steps+1"]:
    """Inverse temperatures of ``num_steps`` tempered leapfrog steps.

    Example:
        >>> [f"{beta:.4f}" for beta in inverse_temperatures(0.25, 2)]
        ['0.2500', '0.3265', '1.0000']
    """
    _shared.check_beta_0(beta_0)
    beta_0 = jnp.asarray(beta_0, dtype=jnp.result_type(beta_0, float))
    return _shared.inverse_temperatures(beta_0, num_steps, tempering)

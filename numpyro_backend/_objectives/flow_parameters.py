# SPDX-License-Identifier: MIT
"""What a Hamiltonian flow learns: its step sizes and its temperatures."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.constraints import Constraint

from numpyro_backend._traces.refined_guide import FlowSettings
from numpyro_backend.tempering import free_inverse_temperatures, inverse_temperatures
from pyro_infovae._core.flow_options import TemperedOptions


class FlowParameters:
    r"""Step sizes below a maximum, and inverse temperatures, learned or fixed.

    Learned values are NumPyro parameters, named ``f"{name}.step_size"`` and so on, constrained:
    step sizes to (0, max_step_size) by a sigmoid, :math:`\beta_0` and the free tempering factors
    to (0, 1). A :math:`\beta_0` of 1 is no tempering and stays.

    Args:
        name: the name before that of each parameter.
        options: the settings that they start from.

    Raises:
        ValueError: for numbers out of range; when used, for parameters of other shapes under the
            same name.
    """

    def __init__(self, name: str, options: TemperedOptions) -> None:
        self.name = name
        self.num_steps = num_steps = options.num_steps
        self.tempering = tempering = options.tempering
        self.per_step = options.per_step
        step_size, beta_0, learn = options.step_size, options.beta_0, options.learn
        self.keys = _keys(step_size)
        self.initial: dict[str, np.ndarray] = {}
        self.constraints: dict[str, Constraint] = {}
        if tempering == "free":
            inverse_temperatures(beta_0, num_steps)  # checks both
        else:
            inverse_temperatures(beta_0, num_steps, tempering)
        for site, key in self.keys.items():
            value = step_size[site] if isinstance(step_size, Mapping) else step_size
            self._add_step_size(key, np.array(value, float), learn, options.max_step_size)
        self._add_tempering(beta_0, learn)

    @property
    def learned(self) -> list[str]:
        """The names of the parameters."""
        return [f"{self.name}.{key}" for key in self.constraints]

    def declare(self) -> None:
        """Declare the parameters in the program that is running."""
        for key in self.constraints:
            self._value(key)

    def __call__(self) -> FlowSettings:
        """The values to run with, declared as parameters on the way."""
        step_sizes = {site: self._value(key) for site, key in self.keys.items()}
        return FlowSettings(
            step_size=step_sizes.get("", step_sizes),
            per_step=self.per_step,
            inverse_temperatures=self._inverse_temperatures(),
        )

    def _inverse_temperatures(self) -> Array:
        if self.tempering == "free":
            return free_inverse_temperatures(self._value("tempering_factors"))
        return inverse_temperatures(self._value("beta_0"), self.num_steps, self.tempering)

    def _value(self, key: str) -> Array:
        initial = jnp.asarray(self.initial[key], float)
        if key not in self.constraints:
            return initial
        name = f"{self.name}.{key}"
        value = jnp.asarray(numpyro.param(name, initial, constraint=self.constraints[key]))
        if value.shape != initial.shape:
            raise ValueError(
                f"Expected '{name}' of shape {initial.shape}; the parameters hold one of shape "
                f"{value.shape}: give this objective another name, or initialise them anew"
            )
        return value

    def _add_step_size(self, key: str, value: np.ndarray, learn: bool, maximum: float) -> None:
        if self.per_step and value.ndim == 0:
            value = value.repeat(self.num_steps)
        self.initial[key] = value
        if learn:
            self.constraints[key] = constraints.interval(0.0, maximum)

    def _add_tempering(self, beta_0: float, learn: bool) -> None:
        if self.tempering == "free":
            key, value = "tempering_factors", np.full(self.num_steps, beta_0)
            value = value ** (1 / (2 * self.num_steps))
        else:
            key, value = "beta_0", np.array(beta_0)
        self.initial[key] = value
        if learn and self.tempering != "none" and beta_0 < 1:
            self.constraints[key] = constraints.unit_interval


def _keys(step_size: float | Array | Mapping[str, float | Array]) -> dict[str, str]:
    """The parameter's name by site; one for all sites stands under the empty name."""
    if not isinstance(step_size, Mapping):
        return {"": "step_size"}
    return {site: f"step_size_{site.replace('.', '_')}" for site in step_size}

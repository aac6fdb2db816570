# SPDX-License-Identifier: MIT
"""What a Hamiltonian flow learns: its step sizes and its temperatures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_infovae._core.flow_options import TemperedOptions
from pyro_infovae._traces.refined_guide import FlowSettings
from pyro_infovae.tempering import free_inverse_temperatures, inverse_temperatures


class FlowParameters(PyroModule):
    r"""Step sizes below a maximum, and inverse temperatures, learned or fixed.

    Learned values are Pyro parameters under the module's name, constrained: step sizes to
    (0, max_step_size) by a sigmoid, :math:`\beta_0` and the free tempering factors to (0, 1). A
    :math:`\beta_0` of 1 is no tempering and stays.

    Args:
        name: the name in the param store.
        options: the settings that they start from.

    Raises:
        ValueError: for numbers out of range; when used, where the param store holds values of other
            shapes under the same name.
    """

    def __init__(self, name: str, options: TemperedOptions) -> None:
        super().__init__(name)
        self.num_steps = num_steps = options.num_steps
        self.tempering = tempering = options.tempering
        self.per_step = options.per_step
        step_size, beta_0, learn = options.step_size, options.beta_0, options.learn
        self.keys = _keys(step_size)
        self.shapes: dict[str, torch.Size] = {}
        if tempering == "free":
            inverse_temperatures(beta_0, num_steps)  # checks both
        else:
            inverse_temperatures(beta_0, num_steps, tempering)
        for site, key in self.keys.items():
            value = step_size[site] if isinstance(step_size, Mapping) else step_size
            self._add_step_size(key, torch.as_tensor(value), learn, options.max_step_size)
        self._add_tempering(beta_0, learn)

    def forward(self) -> FlowSettings:
        """The values to run with, registered as parameters on the way."""
        step_sizes = {site: self._value(key) for site, key in self.keys.items()}
        return FlowSettings(
            step_size=step_sizes.get("", step_sizes),
            per_step=self.per_step,
            inverse_temperatures=self._inverse_temperatures(),
        )

    def terms(self) -> dict[str, Tensor]:
        """What a step is told of beside its losses."""
        return {}

    def _inverse_temperatures(self) -> Tensor:
        if self.tempering == "free":
            return free_inverse_temperatures(self._value("tempering_factors"))
        return inverse_temperatures(self._value("beta_0"), self.num_steps, self.tempering)

    def _value(self, key: str) -> Tensor:
        value: Tensor = getattr(self, key)
        if value.shape != self.shapes[key]:
            raise ValueError(
                f"Expected '{self._pyro_name}.{key}' of shape {tuple(self.shapes[key])}; the param "
                f"store holds one of shape {tuple(value.shape)}: give this objective another name, "
                "or clear the param store"
            )
        return value

    def _add_step_size(self, key: str, value: Tensor, learn: bool, maximum: float) -> None:
        value = value.detach().to(torch.get_default_dtype()).clone()
        if self.per_step and value.dim() == 0:
            value = value.repeat(self.num_steps)
        self.shapes[key] = value.shape
        if learn:
            setattr(self, key, PyroParam(value, constraints.interval(0.0, maximum)))
        else:
            self.register_buffer(key, value)

    def _add_tempering(self, beta_0: float, learn: bool) -> None:
        if self.tempering == "free":
            key, value = "tempering_factors", torch.full((self.num_steps,), beta_0)
            value = value ** (1 / (2 * self.num_steps))
        else:
            key, value = "beta_0", torch.tensor(beta_0)
        value = value.to(torch.get_default_dtype())
        self.shapes[key] = value.shape
        if learn and self.tempering != "none" and beta_0 < 1:
            setattr(self, key, PyroParam(value, constraints.unit_interval))
        else:
            self.register_buffer(key, value)


def _keys(step_size: float | Tensor | Mapping[str, float | Tensor]) -> dict[str, str]:
    """The parameter's name by site; one for all sites stands under the empty name."""
    if not isinstance(step_size, Mapping):
        return {"": "step_size"}
    return {site: f"step_size_{site.replace('.', '_')}" for site in step_size}

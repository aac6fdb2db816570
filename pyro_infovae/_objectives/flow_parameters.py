# SPDX-License-Identifier: MIT
"""What a Hamiltonian flow learns: its step sizes and its temperatures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pyro_infovae._traces.refined_guide import FlowSettings
from pyro_infovae.tempering import Tempering, free_inverse_temperatures, inverse_temperatures


class FlowParameters(PyroModule):
    r"""Step sizes below a maximum, and inverse temperatures, learned or fixed.

    Learned values are Pyro parameters under the module's name, constrained: step sizes to
    (0, max_step_size) by a sigmoid, :math:`\beta_0` and the free tempering factors to (0, 1). A
    :math:`\beta_0` of 1 is no tempering and stays.

    Args:
        name: the name in the param store.
        num_steps: the number of leapfrog steps K.
        step_size: the initial step size, for all sites or per site: a number, or a tensor that
            broadcasts to the unconstrained site.
        beta_0: the initial inverse temperature.
        tempering: the schedule, see :mod:`pyro_infovae.tempering`, or ``"free"``: a factor per
            step.
        learn: whether these are learned.
        max_step_size: the bound of learned step sizes.
        per_step: whether every step has a step size of its own.

    Raises:
        ValueError: for numbers out of range; when used, where the param store holds values of other
            shapes under the same name.
    """

    def __init__(
        self,
        name: str,
        *,
        num_steps: int,
        step_size: float | Tensor | Mapping[str, float | Tensor],
        beta_0: float,
        tempering: Tempering,
        learn: bool,
        max_step_size: float,
        per_step: bool,
    ) -> None:
        super().__init__(name)
        self.num_steps = num_steps
        self.tempering = tempering
        self.per_step = per_step
        self.keys = _keys(step_size)
        self.shapes: dict[str, torch.Size] = {}
        if tempering == "free":
            inverse_temperatures(beta_0, num_steps)  # checks both
        else:
            inverse_temperatures(beta_0, num_steps, tempering)
        for site, key in self.keys.items():
            value = step_size[site] if isinstance(step_size, Mapping) else step_size
            self._add_step_size(key, torch.as_tensor(value), learn, max_step_size)
        self._add_tempering(beta_0, learn)

    def forward(self) -> FlowSettings:
        """The values to run with, registered as parameters on the way."""
        step_sizes = {site: self._value(key) for site, key in self.keys.items()}
        return FlowSettings(
            step_size=step_sizes.get("", step_sizes),
            per_step=self.per_step,
            inverse_temperatures=self._inverse_temperatures(),
        )

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
        if self.per_step and (value.dim() == 0 or value.shape[0] != self.num_steps):
            if value.dim() > 0:
                raise ValueError(
                    f"Expected {key} with a leading axis of num_steps={self.num_steps}, one entry "
                    f"per step; got shape {tuple(value.shape)}"
                )
            value = value.repeat(self.num_steps)
        if not (torch.isfinite(value) & (value >= 0)).all():
            raise ValueError(f"Expected {key} >= 0 and finite; got {value.tolist()}")
        self.shapes[key] = value.shape
        if not learn:
            self.register_buffer(key, value)
            return
        if not ((value > 0) & (value < maximum)).all():
            remedy = "raise max_step_size" if (value > 0).all() else "start above 0"
            raise ValueError(
                f"Expected 0 < {key} < max_step_size={maximum} where it is learned; got "
                f"{value.tolist()}: {remedy}, or pass learn=False"
            )
        setattr(self, key, PyroParam(value, constraints.interval(0.0, maximum)))

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

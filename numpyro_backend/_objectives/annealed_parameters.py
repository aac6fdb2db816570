# SPDX-License-Identifier: MIT
"""What an annealed flow learns: step sizes, temperatures, persistence, weights of a surrogate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jaxtyping import Float
from numpyro.distributions import constraints
from numpyro.distributions.constraints import Constraint
from numpyro.primitives import mutable

from numpyro_backend._traces.annealed_guide import AnnealedSettings
from pyro_infovae._core import step_scale
from pyro_infovae._core.flow_options import AnnealedOptions
from pyro_infovae._core.surrogate import num_points

MONITOR = ".monitor"
"""How the names of the mutable sites end that hold the scale of the steps."""


@dataclass(frozen=True)
class AnnealedParameters:
    r"""Step sizes, inverse temperatures and persistence of a flow, learned or fixed.

    Learned values are NumPyro parameters, named ``f"{name}.step_size_{site}"`` and so on: step
    sizes, one array for each site of the guide that moves, positive or in (0, max_step_size); the
    logits of the increments of the inverse temperature, :math:`\beta =
    \mathrm{cumsum}(\mathrm{softmax})`; and the persistence in (0, 1). A persistence of 0 or 1
    stays. With a surrogate, also the positive weights of its rows.

    Attributes:
        name: the name before that of each parameter.
        options: the settings that they start from.
        declared: the names of the parameters that there are, where others may not be added.

    Raises:
        ValueError: for numbers out of range; when used, for parameters of other shapes under the
            same name, or that nobody declared.
    """

    name: str
    options: AnnealedOptions
    declared: Collection[str] | None = None

    def monitor(self) -> dict[str, Array]:
        """Mutable state: under ``"state"`` what :mod:`~pyro_infovae._core.step_scale` keeps."""
        initial = {"state": jnp.array(step_scale.start())}
        if not self.options.learn:
            return initial
        monitor: dict[str, Array] = mutable(f"{self.name}{MONITOR}", initial)
        return monitor

    def __call__(
        self,
        positions: Mapping[str, Array],
        event_dims: Mapping[str, int],
        scale: Float[Array, ""],
    ) -> AnnealedSettings:
        """The values to run with, declared as parameters on the way.

        Args:
            positions: where the sites start that move, by name.
            event_dims: how many of their dims are event dims.
            scale: of the steps.
        """
        options, between = self.options, self.options.num_steps - 1
        sizes = options.step_sizes(positions)
        step_size = {}
        for site, position in positions.items():
            event = position.shape[position.ndim - event_dims[site] :]
            shape = options.step_size_shape(sizes[site], event)
            size = scale * self._step_size(site, sizes[site], shape)
            step_size[site] = size.astype(position.dtype)
        logits = self._value(
            "increment_logits", jnp.zeros(between + 1), constraints.real, learns=between > 0
        )
        persistence = self._value(
            "persistence",
            jnp.full(between, options.persistence),
            constraints.unit_interval,
            learns=between > 0 and 0 < options.persistence < 1,
        )
        return AnnealedSettings(
            step_size=step_size,
            inverse_temperatures=jnp.cumsum(jax.nn.softmax(logits)),
            persistence=persistence,
            surrogate_weights=self._surrogate_weights(),
        )

    def _surrogate_weights(self) -> Array | None:
        """Those of the rows that stand for all data, in units of N over their number."""
        if self.options.surrogate is None:
            return None
        start = jnp.ones(num_points(self.options.surrogate))
        return self._value("surrogate_weights", start, constraints.positive, learns=True)

    def _step_size(self, site: str, size: Any, shape: tuple[int, ...]) -> Array:
        """The step sizes of a site, with a leading axis of steps."""
        bound = self.options.max_step_size
        value = self._value(
            f"step_size_{site.replace('.', '_')}",
            jnp.broadcast_to(jnp.asarray(size, float), shape),
            constraints.positive if bound is None else constraints.interval(0.0, bound),
            learns=True,
        )
        if self.options.per_step:
            return value
        return jnp.broadcast_to(value, (self.options.num_steps, *shape))

    def _value(self, key: str, initial: Array, constraint: Constraint, *, learns: bool) -> Array:
        if not (learns and self.options.learn):
            return initial
        name = f"{self.name}.{key}"
        if self.declared is not None and name not in self.declared:
            raise ValueError(
                f"TraceHamiltonian_ELBO has parameters of its own, '{name}', that svi.init did not "
                "declare: use numpyro_backend.SVI, or pass elbo.wrap_guide(guide) as the guide"
            )
        value = jnp.asarray(numpyro.param(name, initial, constraint=constraint))
        if value.shape != initial.shape:
            raise ValueError(
                f"Expected '{name}' of shape {initial.shape}; the parameters hold one of shape "
                f"{value.shape}: give this objective another name, or initialise them anew"
            )
        return value

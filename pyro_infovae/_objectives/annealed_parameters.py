# SPDX-License-Identifier: MIT
"""What an annealed flow learns: step sizes, temperatures, persistence, weights of a surrogate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_infovae._core import step_scale
from pyro_infovae._core.flow_options import AnnealedOptions
from pyro_infovae._core.surrogate import num_points
from pyro_infovae._traces.annealed_guide import AnnealedSettings

STEP_SIZE = "step_size_"
# Runs with a gradient, the usual accumulated ones among them, after which a step size that has not
# moved is told of.
PATIENCE = 50


class AnnealedParameters(PyroModule):
    r"""Step sizes, inverse temperatures and persistence of a flow, learned or fixed.

    Learned values are Pyro parameters under the module's name: step sizes, one tensor for each site
    of the guide that moves, positive or in (0, max_step_size); the logits of the increments of the
    inverse temperature, :math:`\beta = \mathrm{cumsum}(\mathrm{softmax})`; and the persistence in
    (0, 1). A persistence of 0 or 1 stays. With a surrogate, also the positive weights of its rows.

    Step sizes are made on the first call, which tells the sites' shapes, or when a state dict that
    has them is loaded. As with every parameter that is made on a call, an optimiser that was given
    ``parameters()`` before does not train them; a warning tells so.

    Args:
        name: the name in the param store.
        options: the settings that they start from.

    Raises:
        ValueError: for numbers out of range; when used, where the param store holds values of other
            shapes under the same name.
    """

    def __init__(self, name: str, options: AnnealedOptions) -> None:
        super().__init__(name)
        self.options = options
        between = options.num_steps - 1
        persistence = torch.full((between,), options.persistence)
        learns = options.learn and between > 0
        self._add("increment_logits", torch.zeros(between + 1), constraints.real, learns)
        learns = learns and 0 < options.persistence < 1
        self._add("persistence", persistence, constraints.unit_interval, learns)
        if options.surrogate is not None:
            weights = torch.ones(num_points(options.surrogate))
            self._add("surrogate_weights", weights, constraints.positive, options.learn)
        self.register_buffer("monitor", torch.tensor(step_scale.start()))
        self.register_load_state_dict_pre_hook(_make_step_sizes)
        self._still = 0
        self._written: list[int] | None = None

    def forward(
        self, positions: Mapping[str, Tensor], event_dims: Mapping[str, int]
    ) -> AnnealedSettings:
        """The values to run with, registered as parameters on the way.

        Args:
            positions: where the sites start that move, by name.
            event_dims: how many of their dims are event dims.
        """
        options = self.options
        sizes = options.step_sizes(positions)
        scale = step_scale.scale_of(self.monitor)
        self._look_after_training()
        step_sizes = {}
        for site, position in positions.items():
            event = position.shape[position.dim() - event_dims[site] :]
            shape = options.step_size_shape(sizes[site], event)
            step_sizes[site] = (scale * self._step_size(site, sizes[site], shape)).to(position)
        like = next(iter(positions.values()))
        return AnnealedSettings(
            step_size={
                site: size if options.per_step else size.expand(options.num_steps, *size.shape)
                for site, size in step_sizes.items()
            },
            inverse_temperatures=self.increment_logits.softmax(0).cumsum(0).to(like),
            persistence=self.persistence.to(like),
            surrogate_weights=(
                None if options.surrogate is None else self.surrogate_weights.to(like)
            ),
        )

    def adapt(self, gain: Tensor, numbers: float) -> None:
        """Shrink the steps of the next evaluations while the flow does harm, or the guide's work.

        Args:
            gain: by how much the flow's bound is above that of its unmoved draw, in nats per row.
            numbers: how many numbers of a row flow.
        """
        with torch.no_grad():
            self.monitor.copy_(step_scale.adapted(self.monitor, gain.to(self.monitor), numbers))

    def terms(self) -> dict[str, Tensor]:
        """What a step is told of beside its losses."""
        return {
            "step_scale": step_scale.scale_of(self.monitor),
            "harm_scale": self.monitor[1].clone(),
        }

    def _step_size(self, site: str, size: float | Tensor, shape: tuple[int, ...]) -> Tensor:
        key = f"{STEP_SIZE}{site.replace('.', '_')}"
        if not hasattr(self, key):
            # Where this module has been moved to, if it has.
            like = self.increment_logits
            with torch.inference_mode(False), torch.no_grad():
                if isinstance(size, Tensor):
                    value = size.detach().to(like).expand(shape).clone()
                else:
                    value = like.new_full(shape, size)
            self._add(key, value, self._constraint, self.options.learn)
        value = getattr(self, key)
        if value.shape != shape:
            raise ValueError(
                f"Expected '{self._pyro_name}.{key}' of shape {tuple(shape)}; the param store "
                f"holds one of shape {tuple(value.shape)}: give this objective another name, or "
                "clear the param store"
            )
        return value

    @property
    def _constraint(self) -> constraints.Constraint:
        bound = self.options.max_step_size
        return constraints.positive if bound is None else constraints.interval(0.0, bound)

    def _look_after_training(self) -> None:
        if self._still == PATIENCE:
            return
        made = [p for key, p in self.named_parameters() if key.startswith(STEP_SIZE)]
        if all(p.grad is None for p in made):
            return
        # Whether they were written to, which is known without their values.
        written = [p._version for p in made]
        self._still = self._still + 1 if self._written in (None, written) else PATIENCE
        if self._written == written and self._still == PATIENCE:
            warnings.warn(
                f"TraceHamiltonian_ELBO: no optimiser has moved the step sizes of "
                f"'{self._pyro_name}' in {PATIENCE} runs with gradients. They are made on the "
                "first call of elbo(model, guide): call it once before you give its parameters() "
                "to an optimiser, or it to DistributedDataParallel",
                stacklevel=2,
            )
        self._written = written

    def _add(
        self, key: str, value: Tensor, constraint: constraints.Constraint, learns: bool
    ) -> None:
        if learns:
            setattr(self, key, PyroParam(value, constraint))
        else:
            self.register_buffer(key, value)


def _make_step_sizes(
    module: AnnealedParameters, state: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Make the step sizes that a state dict has, to load them."""
    learns, constraint = module.options.learn, module._constraint
    for key, value in state.items():
        if not key.startswith(prefix + STEP_SIZE):
            continue
        name = key.removeprefix(prefix)
        name = name.removesuffix("_unconstrained") if learns else name
        if not hasattr(module, name):
            start = value.detach().to(module.increment_logits)
            start = transform_to(constraint)(start) if learns else start
            module._add(name, start, constraint, learns)

# SPDX-License-Identifier: MIT
"""The named axes of a site's values: its plates, then its event dims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped


@dataclass(frozen=True)
class Axes:
    """The axes of a site by name, with their sizes.

    Attributes:
        batch: those of the batch dims: the plates, left to right.
        event: those of the event dims.
    """

    batch: dict[str, int]
    event: dict[str, int]

    @classmethod
    def of(
        cls,
        name: str,
        batch_shape: Iterable[int],
        event_shape: Iterable[int],
        plates: Mapping[int, str],
    ) -> Axes:
        """The axes of a site, named after its plates, or itself where a dim is in none.

        Args:
            name: the site's name.
            batch_shape: its batch shape; dims of size 1 in no plate are left out.
            event_shape: its event shape.
            plates: the names of its plates by dim.
        """
        batch_shape = tuple(batch_shape)
        batch: dict[str, int] = {}
        unnamed = 0
        for dim, size in enumerate(batch_shape, start=-len(batch_shape)):
            if dim in plates:
                batch[plates[dim]] = size
            elif size > 1:
                batch[f"{name}_dim_{unnamed}"] = size
                unnamed += 1
        event = {f"{name}_dim_{dim}": size for dim, size in enumerate(event_shape, start=unnamed)}
        return cls(batch, event)

    @property
    def rows(self) -> Axes:
        """The axes without those of event dims."""
        return Axes(self.batch, {})

    @property
    def names(self) -> list[str]:
        """The names of all axes, left to right."""
        return [*self.batch, *self.event]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes, left to right."""
        return (*self.batch.values(), *self.event.values())

    def arrange(self, values: Any) -> Shaped[np.ndarray, " *shape"]:
        """A value along these axes."""
        return np.asarray(values).reshape(self.shape)

    def arrange_draws(self, values: Any, num_draws: int) -> Shaped[np.ndarray, " draws *shape"]:
        """The values of several draws along these axes, repeated where all draws share one."""
        values = np.asarray(values)
        if values.size == math.prod(self.shape):
            return np.broadcast_to(self.arrange(values), (num_draws, *self.shape))
        return values.reshape(num_draws, *self.shape)


def num_event_dims(shape: tuple[int, ...], plates: Mapping[int, int]) -> int:
    """The fewest event dims that leave a value a batch shape with its plates in; all, if none do.

    Args:
        shape: the shape of the value.
        plates: the sizes of its plates by dim.
    """
    for event_dim in range(len(shape)):
        batch_shape = shape[: len(shape) - event_dim]
        if all(-dim <= len(batch_shape) and batch_shape[dim] == n for dim, n in plates.items()):
            return event_dim
    return len(shape)

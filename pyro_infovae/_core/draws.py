# SPDX-License-Identifier: MIT
"""Draws of a model's sites as arrays along named axes, group by group as ArviZ has them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int, Shaped

Arrays: TypeAlias = dict[str, Shaped[np.ndarray, "..."]]


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


@dataclass(frozen=True)
class Draws:
    r"""Draws of a model's sites, and what it observes.

    Attributes:
        groups: by ArviZ's group and site, values of shape (draws, \*axes).
        counted: by observed site, whether a row is not masked, of shape (draws, \*rows).
        observed: by site, the data, of shape (\*axes,).
        axes: by site.
        indices: by plate, which data a minibatch holds.
        full_sizes: by plate, the number of all data.
    """

    groups: dict[str, Arrays]
    counted: dict[str, Bool[np.ndarray, ...]]
    observed: Arrays
    axes: dict[str, Axes]
    indices: dict[str, Int[np.ndarray, " rows"]]
    full_sizes: dict[str, int]

    @classmethod
    def join(cls, parts: Sequence[Draws]) -> Draws:
        """The draws of several runs, one after the other."""

        def joined(runs: Sequence[Arrays]) -> Arrays:
            return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}

        return replace(
            parts[0],
            groups={group: joined([p.groups[group] for p in parts]) for group in parts[0].groups},
            counted=joined([part.counted for part in parts]),
        )

    def without_masked_rows(self) -> Draws:
        """Observed sites less the rows that a mask leaves out of all draws, the rest in one axis.

        Sites that are masked altogether are left out.
        """
        draws = self
        for name, counted in self.counted.items():
            kept = np.asarray(counted.any(0))
            if not kept.all():
                draws = draws._with_rows(name, kept) if kept.any() else draws._without(name)
        return draws

    def check(self, latents: Collection[str]) -> None:
        """Refuse latents, and log likelihoods, that are nan.

        Raises:
            ValueError: naming the site.
        """
        for name in sorted(latents):
            _refuse_nan(
                self.groups["posterior"][name],
                f"draws of site '{name}'",
                "the guide's parameters are nan or overflow: train it at a lower learning rate",
            )
        for name, values in self.groups["log_likelihood"].items():
            _refuse_nan(
                values,
                f"log likelihoods of site '{name}'",
                "look for nan in its data, and for values outside of its support",
            )

    def _with_rows(self, name: str, kept: Bool[np.ndarray, "*rows"]) -> Draws:
        batch = self.axes[name].batch
        indices = [self.indices.get(axis, np.arange(size)) for axis, size in batch.items()]
        full_shape = [self.full_sizes.get(axis, size) for axis, size in batch.items()]
        row_ids = np.ravel_multi_index(np.ix_(*indices), full_shape)[kept]
        rows = f"{name}_row"
        return replace(
            self,
            groups={
                group: {n: v[:, kept] if n == name else v for n, v in values.items()}
                for group, values in self.groups.items()
            },
            observed={n: v[kept] if n == name else v for n, v in self.observed.items()},
            axes={**self.axes, name: Axes({rows: len(row_ids)}, self.axes[name].event)},
            indices={**self.indices, rows: row_ids},
        )

    def _without(self, name: str) -> Draws:
        return replace(
            self,
            groups={
                group: {n: v for n, v in values.items() if n != name}
                for group, values in self.groups.items()
            },
            observed={n: v for n, v in self.observed.items() if n != name},
            axes={n: a for n, a in self.axes.items() if n != name},
        )


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


def _refuse_nan(values: Shaped[np.ndarray, ...], what: str, remedy: str) -> None:
    count = int(np.isnan(values).sum())
    if count:
        raise ValueError(f"to_inference_data: nan in {count} of {values.size} {what}: {remedy}")

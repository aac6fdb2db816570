# SPDX-License-Identifier: MIT
"""Draws of a model's sites as arrays, group by group as ArviZ has them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int, Shaped

from pyro_infovae._core.axes import Axes

Arrays: TypeAlias = dict[str, Shaped[np.ndarray, "..."]]


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


def _refuse_nan(values: Shaped[np.ndarray, ...], what: str, remedy: str) -> None:
    count = int(np.isnan(values).sum())
    if count:
        raise ValueError(f"to_inference_data: nan in {count} of {values.size} {what}: {remedy}")

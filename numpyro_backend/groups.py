# SPDX-License-Identifier: MIT
"""A group of latents in the runs that a base ELBO has scored: its rows, data and fresh draws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
from jax import Array
from jaxtyping import Bool, Key, Shaped

from numpyro_backend._traces.runs import draw_prior
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import Rows as Rows
from pyro_infovae._core.rows import data_of, normal_rows, rows_of
from pyro_infovae._core.sites import Plate, Run, Sites

__all__ = ["Group", "Rows"]

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The selected latents that share a stack of plates, in the runs that the base has scored.

    Attributes:
        names: the sites, in the order of the model.
        runs: the scored runs, their arrays stacked along a leading axis of particles.
        rng_key: the key for what the penalty draws.
        params: the values of parameters and mutable sites, by name.
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    names: tuple[str, ...]
    runs: Run
    rng_key: Key[Array, ""]
    params: dict[str, Any]
    model: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The plates of the latents, left to right."""
        return self.runs.model[self.names[0]].plates

    @property
    def posterior(self) -> Rows:
        """The rows as the guide drew them and the model saw them."""
        return self.per_row(lambda run: rows_of(self.names, run.model, run))

    @property
    def data(self) -> dict[str, Shaped[Array, " rows *event"]]:
        """The observed values in the same plates, by site name, a row per row of the latents."""
        return self.per_row(lambda run: data_of(self.names, run))

    def with_data(
        self,
        data: dict[str, Shaped[Array, " rows *event"]],
        counts: Bool[Array, " rows"] | None = None,
    ) -> Rows:
        """The posterior's rows, and beside them data that are given for them.

        Args:
            data: the data.
            counts: which of the rows count; None for all that the latents' masks leave.
        """
        return replace(self.posterior, data=data).counting(counts)

    def prior(self, draws: int = 1) -> Rows:
        """The rows drawn afresh from the model, ``draws`` times, given all other latents."""

        def draw(run: Run, rng_key: Key[Array, ""]) -> Rows:
            redrawn = draw_prior(
                self.model, rng_key, self.params, self.args, self.kwargs, run, self.names
            )
            return rows_of(self.names, redrawn, run)

        particles = self.runs.model[self.names[0]].value.shape[0]
        keys = jax.random.split(self.rng_key, (particles, draws))
        redrawn = jax.vmap(jax.vmap(draw, in_axes=(None, 0)))(self.runs, keys)
        return _pool(redrawn, axes=2)

    def normals(self, program: Callable[[Run], Sites]) -> Rows | None:
        """Location and scale, per row, of the diagonal normal that the only latent is drawn from.

        Args:
            program: picks the guide's or the model's sites of a run.

        Returns:
            Rows with the latents ``"loc"`` and ``"scale"``; None for any other density.
        """
        (name,) = self.names
        normals = self.per_row(lambda run: normal_rows(name, program(run), run))
        if normals is None:
            return None
        loc, scale = normals
        return replace(self.posterior, latents=OrderedDict(loc=loc, scale=scale))

    def per_row(self, quantity: Callable[[Run], T]) -> T:
        """A quantity of the rows of each run, those of all runs one below the other."""
        return _pool(jax.vmap(quantity)(self.runs))


def _pool(parts: T, axes: int = 1) -> T:
    """Rows of several runs, stacked along the leading axes, one below the other."""
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[axes + 1 :]), parts)

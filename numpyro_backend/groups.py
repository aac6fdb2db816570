# SPDX-License-Identifier: MIT
"""A group of latents in the runs that a base ELBO has scored: its rows, data and fresh draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array
from jaxtyping import Key, Shaped

from numpyro_backend._traces.runs import Program, Run, draw_prior
from numpyro_backend.rows import Rows, data_of, pool, rows_of


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
    def posterior(self) -> Rows:
        """The rows as the guide drew them and the model saw them."""
        return pool(jax.vmap(lambda run: rows_of(self.names, run.model, run.guide))(self.runs))

    @property
    def data(self) -> dict[str, Shaped[Array, " rows *event"]]:
        """The observed values in the same plates, by site name, a row per row of the latents."""
        return pool(jax.vmap(lambda run: data_of(self.names, run.model))(self.runs))

    def prior(self, draws: int) -> Rows:
        """The rows drawn afresh from the model, ``draws`` times, given all other latents."""

        def draw(run: Run, rng_key: Key[Array, ""]) -> Rows:
            redrawn = draw_prior(
                self.model, rng_key, self.params, self.args, self.kwargs, run, self.names
            )
            return rows_of(self.names, redrawn, run.guide)

        particles = self.runs.model[self.names[0]].value.shape[0]
        keys = jax.random.split(self.rng_key, (particles, draws))
        redrawn = jax.vmap(jax.vmap(draw, in_axes=(None, 0)))(self.runs, keys)
        return pool(redrawn, axes=2)

# SPDX-License-Identifier: MIT
"""A group of latents in the runs that a base ELBO has scored: its rows, data and fresh draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_infovae._arrays.joining import joined
from pyro_infovae._traces.runs import Program, Run, draw_prior
from pyro_infovae.rows import Rows, data_of, pool, rows_of


@dataclass(frozen=True)
class Group:
    """The selected latents that share a stack of plates, in the runs that the base has scored.

    Attributes:
        names: the sites, in the order of the model.
        runs: the scored runs, one per particle (one for all when they are vectorised).
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    model: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def posterior(self) -> Rows:
        """The rows as the guide drew them and the model saw them."""
        return pool([rows_of(self.names, run.model, run.guide) for run in self.runs])

    @property
    def data(self) -> dict[str, Tensor]:
        """The observed values in the same plates, by site name, a row per row of the latents."""
        parts = [data_of(self.names, run.model, run.guide) for run in self.runs]
        return {name: joined([part[name] for part in parts]) for name in parts[0]}

    def prior(self, draws: int) -> Rows:
        """The rows drawn afresh from the model, ``draws`` times, given all other latents."""
        redrawn = [
            rows_of(
                self.names,
                draw_prior(self.model, self.args, self.kwargs, run, self.names),
                run.guide,
            )
            for run in self.runs
            for _ in range(draws)
        ]
        return pool(redrawn)

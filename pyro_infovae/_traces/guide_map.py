# SPDX-License-Identifier: MIT
"""What a guide makes of the coordinates of its sites: latents, and their log densities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_infovae._arrays.checkpointing import differentiable
from pyro_infovae._core.programs import Program
from pyro_infovae._traces.coordinates import Coordinates, coordinates
from pyro_infovae._traces.flow import Values, depends, hidden, subsample_factor, where_rows
from pyro_infovae._traces.initial_draw import InitialDraw, InitialSite
from pyro_infovae._traces.recording import undecorated


@dataclass(frozen=True)
class Moved:
    """A guide's sites at some position.

    Attributes:
        values: of the sites that move, auxiliary ones too, and of the latents made of them.
        log_jacobian: log|det J_T(u)| of each row of the sites that move.
        density: the log density of each row of the point masses.
        coordinates: of the sites that move.
    """

    values: Values
    log_jacobian: Values
    density: Values
    coordinates: dict[str, Coordinates]


@dataclass(frozen=True)
class GuideMap:
    """From the coordinates of a guide's sites to its latents.

    Where no site depends on another that moves, the distributions that the guide drew from serve
    everywhere. Elsewhere the guide is run again.

    Attributes:
        guide: the user's guide.
        args: its positional arguments.
        kwargs: its keyword arguments.
        initial: its draw.
        in_units: whether a unit of length is the scale of the guide.
    """

    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    initial: InitialDraw
    in_units: bool

    @cached_property
    def sites(self) -> dict[str, InitialSite]:
        """The sites that move, by name."""
        drawn = {n: site for n, site in self.initial.flowing.items() if not site.is_point_mass}
        return {**self.initial.auxiliary, **drawn} if self.masses else drawn

    @cached_property
    def masses(self) -> dict[str, InitialSite]:
        """The latents that are point masses, by name."""
        return {n: site for n, site in self.initial.flowing.items() if site.is_point_mass}

    @cached_property
    def coordinates(self) -> dict[str, Coordinates]:
        """Of the sites as they were drawn."""
        return {name: self._coordinates(name, site.fn) for name, site in self.sites.items()}

    @cached_property
    def start(self) -> tuple[Values, Values]:
        """Where the sites were drawn, and which rows have such a position."""
        positions, inside = {}, {}
        for name, site in self.sites.items():
            positions[name], inside[name] = self.coordinates[name].position(site.value)
        return positions, inside

    @cached_property
    def event_dims(self) -> dict[str, int]:
        """How many of the last dims of each position make a row: all to the right of plates."""
        positions, _ = self.start
        return {name: u.dim() - self._num_row_dims(name) for name, u in positions.items()}

    def _num_row_dims(self, name: str) -> int:
        """The number of batch dims up to the last plate."""
        site = self.sites[name]
        frames = (*site.plates, *self.initial.outer)
        dims = [frame.dim for frame in frames if frame.dim is not None]
        return site.batch_dim + 1 + max(dims, default=-site.batch_dim - 1)

    @property
    def is_everywhere(self) -> bool:
        """Whether no site can be drawn on the edge of its support."""
        return all(chart.support is None for chart in self.coordinates.values())

    def check(self) -> None:
        """Refuse point masses that stay where what they are computed from moves.

        Raises:
            ValueError: naming one and saying what to do.
        """
        if not (self.initial.staying and self._shared):
            return
        with torch.inference_mode(False), torch.enable_grad():
            u = {name: x.detach().clone().requires_grad_() for name, x in self.start[0].items()}
            moving = self._run(u, {})
            for name, mass in moving.staying.items():
                for source in self._shared:
                    if depends(mass, u[source]):
                        raise ValueError(
                            f"TraceHamiltonian_ELBO: sites leaves out '{name}', which the guide "
                            f"computes from '{source}' as it does latents that flow: name all of "
                            "them in sites, or use path='posterior'"
                        )

    @cached_property
    def _shared(self) -> list[str]:
        """The auxiliary sites that move and are not one latent's own."""
        latents = {*self.initial.flowing, *self.initial.others}
        moving = self.initial.auxiliary.keys() & self.sites.keys()
        return [
            name for name in sorted(moving) if name.removesuffix("_unconstrained") not in latents
        ]

    def __call__(self, u: Values) -> Moved:
        """The guide's sites at a position; rows without one are in the middle of the support."""
        return self._again(u, {}) if self._runs_again else self._as_drawn(u, {})

    def end(self, u: Values) -> Moved:
        """The guide's sites where they end; rows without a position are where they were drawn."""
        drawn = {name: site.value for name, site in self.sites.items()}
        return self._again(u, drawn) if self._runs_again else self._as_drawn(u, drawn)

    def volume(self, moved: Moved) -> Float[Tensor, ""]:
        """The logarithm of the volume that a unit of position takes among the latents.

        It is scaled up in a subsampled plate.
        """
        terms = [
            scale_and_mask(rows, subsample_factor(self.sites[name].plates), self.sites[name].mask)
            for name, rows in moved.log_jacobian.items()
        ] + [
            scale_and_mask(
                -rows, subsample_factor(self.masses[name].plates), self.masses[name].mask
            )
            for name, rows in moved.density.items()
        ]
        return torch.stack([term.sum() for term in terms]).sum()

    def log_density(self, u: Values, moved: Moved) -> Float[Tensor, ""]:
        """The log density of all rows of a position, unscaled; but for a constant of noise."""
        terms = []
        for name, chart in moved.coordinates.items():
            rows = chart.log_density(u[name], self.sites[name].batch_dim)
            terms.append(scale_and_mask(rows, 1.0, self.sites[name].mask).sum())
        return torch.stack(terms).sum()

    @cached_property
    def _runs_again(self) -> bool:
        return bool(self.masses) or (len(self.sites) > 1 and self._is_dependent())

    def _is_dependent(self) -> bool:
        """Whether the distribution of a site depends on the draw of another."""
        with torch.inference_mode(False), torch.enable_grad():
            u = {name: x.detach().clone().requires_grad_() for name, x in self.start[0].items()}
            moved = self._again(u, {})
            densities = [
                chart.fn.log_prob(moved.values[name].detach()).sum()
                for name, chart in moved.coordinates.items()
            ]
            total = torch.stack(densities).sum()
            if not total.requires_grad:
                return False
            slopes = torch.autograd.grad(total, list(u.values()), allow_unused=True)
        return any(slope is not None for slope in slopes)

    def _as_drawn(self, u: Values, drawn: Values) -> Moved:
        moved = Moved({}, {}, {}, self.coordinates)
        for name, chart in self.coordinates.items():
            self._put(moved, name, chart, u[name], drawn.get(name))
        return moved

    def _again(self, u: Values, drawn: Values) -> Moved:
        return self._run(u, drawn).moved

    def _run(self, u: Values, drawn: Values) -> _Moving:
        moving = _Moving(self, u, drawn)
        with hidden(self.initial.outer), moving:
            args, kwargs = differentiable((self.args, self.kwargs))
            self.guide(*args, **kwargs)
        return moving

    def _put(
        self, moved: Moved, name: str, chart: Coordinates, u: Tensor, drawn: Tensor | None
    ) -> None:
        inside = self.start[1][name]
        z = chart.transform(u)
        rows = chart.log_jacobian(u, z)
        z = z.to(self.sites[name].value.dtype)
        moved.coordinates[name] = chart
        moved.log_jacobian[name] = torch.where(inside, rows, 0.0)
        if drawn is None and chart.support is not None:
            drawn = chart.support(torch.zeros_like(u)).to(z.dtype)
        moved.values[name] = z if drawn is None else where_rows(inside, z, drawn)

    def _coordinates(self, name: str, fn: Any) -> Coordinates:
        return coordinates(name, fn, in_guide_units=self.in_units)


class _Moving(Messenger):
    """Puts the sites that move at their positions, and the others at their values."""

    def __init__(self, guide_map: GuideMap, u: Values, drawn: Values) -> None:
        super().__init__()
        self.guide_map = guide_map
        self.u = u
        self.drawn = drawn
        self.given = guide_map.initial.given
        self.moved = Moved({}, {}, {}, {})
        self.staying: Values = {}

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if name in self.u:
            chart = self.guide_map._coordinates(name, msg["fn"])
            self.guide_map._put(self.moved, name, chart, self.u[name], self.drawn.get(name))
            msg["value"] = self.moved.values[name]
            msg["done"] = True
        elif name in self.given and not msg["is_observed"]:
            if name in self.guide_map.initial.staying:
                mass = undecorated(msg["fn"])
                assert isinstance(mass, Delta)
                self.staying[name] = mass.v
            msg["value"] = self.given[name]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Message) -> None:
        if (name := msg["name"]) in self.guide_map.masses:
            self.moved.values[name] = msg["value"]
            self.moved.density[name] = msg["fn"].log_prob(msg["value"])

# SPDX-License-Identifier: MIT
"""The map from the positions of the sites of a guide that move to the values of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array
from numpyro import handlers
from numpyro.distributions import Delta, Distribution
from numpyro.distributions.util import scale_and_mask
from numpyro.primitives import Messenger

from numpyro_backend._traces.coordinates import Coordinates, coordinates
from numpyro_backend._traces.flow import Values, sources_of, where_rows
from numpyro_backend._traces.initial_draw import DrawRecord, InitialSite
from numpyro_backend._traces.recording import Message, copied, joint_mask, undecorated
from pyro_infovae._core.programs import Program


@dataclass(frozen=True)
class Moved:
    """What a guide says at some positions, row by row, 0 where masked.

    Attributes:
        values: of the sites that move and of the point masses, by name.
        log_q: the log density of the position of each site that moves.
        log_jacobian: log|det J_T(u)| of each.
        log_density: of each point mass, given the sites that move.
    """

    values: Values = field(default_factory=dict)
    log_q: Values = field(default_factory=dict)
    log_jacobian: Values = field(default_factory=dict)
    log_density: Values = field(default_factory=dict)


@dataclass(frozen=True)
class GuideMap:
    """A guide as a function of the positions of the sites that move.

    Attributes:
        bases: the sites that move, by name: latents with a density of their own, and the auxiliary
            sites that point masses are computed from.
        masses: the latents that are such point masses.
        coordinates: those of each base, where it was drawn.
        start: the position of each base.
        inside: which of its rows have a position; the others stay where they were drawn.
        sources: by base and point mass, the bases that it depends on.
        run: the guide, where it has to run again.
    """

    bases: dict[str, InitialSite]
    masses: dict[str, InitialSite]
    coordinates: dict[str, Coordinates]
    start: Values
    inside: Values
    sources: Mapping[str, frozenset[str]]
    run: GuideRun | None

    @classmethod
    def of(cls, initial: DrawRecord, run: GuideRun) -> GuideMap:
        """The map of a guide that has been run.

        Args:
            initial: the run.
            run: the same guide, to run again.

        Raises:
            ValueError: naming the site: for a point mass that is computed from nothing that moves,
                and for a latent that stays while what it is computed from moves.
        """
        masses = {name: s for name, s in initial.flowing.items() if s.is_point_mass}
        drawn = {name: s for name, s in initial.flowing.items() if name not in masses}
        bases = {**initial.auxiliary, **drawn} if masses else drawn
        places = {name: run.coordinates(name, site.fn) for name, site in bases.items()}
        starts = {
            name: places[name].position(site.value, site.intermediates)
            for name, site in bases.items()
        }
        start = {name: u for name, (u, _) in starts.items()}
        inside = {name: rows for name, (_, rows) in starts.items()}
        sources: Mapping[str, frozenset[str]] = {}
        if masses or len(bases) > 1:
            sources = run.sources(start)
        fed = {source for name in masses for source in sources[name]}
        bases = {name: s for name, s in bases.items() if name in initial.flowing or name in fed}
        _check_point_masses(masses, sources, initial.auxiliary)
        _check_staying(initial, sources, bases)
        depends = any(sources.get(name, frozenset()) - {name} for name in bases)
        return cls(
            bases=bases,
            masses=masses,
            coordinates={name: places[name] for name in bases},
            start={name: start[name] for name in bases},
            inside={name: inside[name] for name in bases},
            sources=sources,
            run=run if masses or depends else None,
        )

    @property
    def event_dims(self) -> dict[str, int]:
        """How many of the last dims of each position make a row: all to the right of plates."""
        return {name: u.ndim - _num_row_dims(self.bases[name]) for name, u in self.start.items()}

    def latent_of(self, base: str) -> str:
        """A latent that is computed from a base, or is one."""
        return next((name for name in self.masses if base in self.sources[name]), base)

    def at(self, positions: Values) -> Moved:
        """What the guide says at some positions; nobody is asked or told.

        A row without a position is put in the middle of its support, where it does no harm.
        """
        return self._at(
            {
                name: _Position(
                    u, self.inside[name], self.coordinates[name].middle(self.bases[name].value)
                )
                for name, u in positions.items()
            }
        )

    def end(self, positions: Values) -> Moved:
        """The same, with rows that have no position where they were drawn."""
        return self._at(
            {
                name: _Position(u, self.inside[name], self.bases[name].value)
                for name, u in positions.items()
            }
        )

    def _at(self, positions: Mapping[str, _Position]) -> Moved:
        if self.run is not None:
            return self.run.at(positions)
        moved = Moved()
        for name, place in self.coordinates.items():
            _put(moved, place, positions[name])
        return moved


@dataclass(frozen=True)
class GuideRun:
    """A guide with its arguments, parameters, state and draws, to run any number of times.

    Attributes:
        guide: the guide.
        args: its positional arguments.
        kwargs: its keyword arguments.
        initial: its first run, which gives all that does not move.
        in_guide_units: whether lengths are in units of the guide's scales.
        rng_key: for what it draws besides.
    """

    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    initial: DrawRecord
    in_guide_units: bool
    rng_key: Array | None

    def coordinates(self, name: str, fn: Distribution) -> Coordinates:
        """The coordinates of a site."""
        return coordinates(name, fn, in_guide_units=self.in_guide_units)

    def at(self, positions: Mapping[str, _Position]) -> Moved:
        """What the guide says with sites at some positions."""
        moving = _Moving(self, positions)
        self._run(moving)
        return moving.moved

    def sources(self, start: Values) -> Mapping[str, frozenset[str]]:
        """By site, the bases that its distribution depends on; nothing is computed."""

        def depending(positions: Values) -> dict[str, Any]:
            watching = _Watching(self, {name: _Position(u) for name, u in positions.items()}, start)
            self._run(watching)
            return watching.depending

        return {
            name: frozenset[str]().union(*found)
            for name, found in sources_of(depending, start).items()
        }

    def _run(self, handler: Messenger) -> None:
        with (
            handlers.block(),
            handlers.seed(rng_seed=self.rng_key),
            handlers.substitute(data=copied(self.initial.state)),
            handler,
        ):
            self.guide(*self.args, **self.kwargs)


@dataclass(frozen=True)
class _Position:
    """Where a site is put.

    Attributes:
        position: u.
        inside: which rows of it count, or None for all.
        drawn: the values in the others.
    """

    position: Array
    inside: Array | None = None
    drawn: Array | None = None

    def of(self, value: Array) -> Array:
        """The value of the site, given that at the position."""
        if self.inside is None or self.drawn is None:
            return value
        return where_rows(self.inside, value, self.drawn)

    def at(self, step: Array) -> _Position:
        """That of one step of a ``scan``."""
        return jax.tree.map(lambda leaf: leaf[step], self)


_register = jax.tree_util.register_dataclass
_register(_Position, data_fields=["position", "inside", "drawn"], meta_fields=[])


class _Moving(Messenger):
    """Puts the bases at their positions and all that does not move where it was drawn."""

    def __init__(self, run: GuideRun, positions: Mapping[str, _Position]) -> None:
        super().__init__()
        self.run = run
        self.positions = positions
        self.moved = Moved()
        self._keys = iter(run.initial.keys)

    def process_message(self, msg: Message) -> None:
        name, initial = msg.get("name", ""), self.run.initial
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("substitute", self._scanned))
        elif msg["type"] == "prng_key":
            msg["value"] = next(self._keys, msg["value"])
        elif msg["type"] == "plate":
            msg["value"] = initial.minibatches.get(name, msg["value"])
        elif msg["type"] != "sample" or msg["is_observed"]:
            return
        elif name in self.positions:
            place = self.run.coordinates(name, msg["fn"])
            msg["value"] = _put(self.moved, place, self.positions[name])
        else:
            msg["value"] = self._given(name, msg["value"])

    def postprocess_message(self, msg: Message) -> None:
        name = msg.get("name")
        if msg["type"] != "sample" or name not in self.run.initial.flowing:
            return
        if self.run.initial.flowing[name].is_point_mass:
            self.moved.values[name] = msg["value"]
            self.moved.log_density[name] = msg["fn"].log_prob(msg["value"])

    def _scanned(self, msg: Message) -> Array | None:
        """The value of a site at one step of a ``scan``, which has a leading axis of steps."""
        if msg["is_observed"]:
            return None
        name, step = msg["name"], msg["infer"]["_scan_current_index"]
        if name in self.positions:
            place, put = self.run.coordinates(name, msg["fn"]), self.positions[name].at(step)
            return put.of(place.value(put.position)[0])
        given = self._given(name, None)
        return None if given is None else given[step]

    def _given(self, name: str, value: Array | None) -> Array | None:
        initial = self.run.initial
        return initial.given.get(name, initial.unmoved.get(name, value))


class _Watching(_Moving):
    """Tells what each site depends on."""

    def __init__(self, run: GuideRun, positions: Mapping[str, _Position], start: Values) -> None:
        super().__init__(run, positions)
        self.start = start
        self.depending: dict[str, Any] = {}

    def process_message(self, msg: Message) -> None:
        name = msg.get("name", "")
        if msg["type"] == "sample" and name in self.positions:
            place, u = self.run.coordinates(name, msg["fn"]), self.start[name]
            z, log_jacobian = place.value(u)
            self.depending[name] = [z, log_jacobian, place.log_density(u, z, log_jacobian)]
        elif msg["type"] == "sample" and isinstance(undecorated(msg["fn"]), Delta):
            fn = undecorated(msg["fn"])
            self.depending[name] = [fn.v, fn.log_density]
        super().process_message(msg)


def _num_row_dims(site: InitialSite) -> int:
    """The number of batch dims up to the last plate."""
    last = max((plate.dim for plate in site.plates), default=-site.batch_dim - 1)
    return site.batch_dim + 1 + last


def _put(moved: Moved, place: Coordinates, put: _Position) -> Array:
    """Note what a base says at a position, and give its value there."""
    z, log_jacobian = place.value(put.position)
    log_q = place.log_density(put.position, z, log_jacobian)
    mask, name = joint_mask(place.fn), place.name
    moved.log_q[name] = scale_and_mask(log_q, mask=mask)
    moved.log_jacobian[name] = scale_and_mask(log_jacobian, mask=mask)
    moved.values[name] = put.of(z)
    return moved.values[name]


def _check_point_masses(
    masses: Mapping[str, InitialSite],
    sources: Mapping[str, frozenset[str]],
    auxiliary: Mapping[str, InitialSite],
) -> None:
    for name in masses:
        if not sources[name] & auxiliary.keys():
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{name}' is a point mass in the guide, which has no "
                "density for a flow to carry; give it one, as AutoNormal does, or name others in "
                "sites"
            )


def _check_staying(
    initial: DrawRecord, sources: Mapping[str, frozenset[str]], bases: Mapping[str, InitialSite]
) -> None:
    moving = bases.keys() & initial.auxiliary.keys()
    for name in initial.given:
        for source in sorted(sources.get(name, frozenset()) & moving):
            raise ValueError(
                f"TraceHamiltonian_ELBO: sites leaves out '{name}', which the guide computes from "
                f"'{source}' as it does latents that flow: name all of them in sites, or use "
                "path='posterior'"
            )

# SPDX-License-Identifier: MIT
"""The sites of a run: which are latents, in which plates, and which an objective is about."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.torch import Independent
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch.distributions import Distribution

Messages: TypeAlias = dict[str, Message]

FLOWED = "_flowed"
"""Marks, in a site's ``infer``, a latent that a Hamiltonian flow has moved."""

PARTICLE_PLATE = "num_particles_vectorized"
"""The plate under which Pyro's ELBOs vectorise their particles."""


def is_latent(msg: Message) -> bool:
    """Whether a message is a draw of the program, neither an observation nor a minibatch."""
    return not msg["is_observed"] and not site_is_subsample(msg)


def is_data(msg: Message) -> bool:
    """Whether a message is an observation, neither a factor nor a deterministic value."""
    return msg["is_observed"] and not site_is_factor(msg) and not msg["infer"].get("_deterministic")


def row_plates(msg: Message) -> tuple[CondIndepStackFrame, ...]:
    """The vectorised plates of a site without the particle plate, left to right."""
    frames = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]
    for frame in frames:
        if frame.size < 0:
            raise ValueError(
                f"Plate '{frame.name}' of site '{msg['name']}' has no size: give it one, so that "
                "penalties can be scaled to the data"
            )
    return tuple(sorted(frames, key=lambda frame: frame.dim))


def full_size(frame: CondIndepStackFrame) -> int:
    """The number of data of a plate, of which a minibatch may hold fewer."""
    return frame.full_size or frame.size


def data_size(frames: Iterable[CondIndepStackFrame]) -> int:
    """The number N of data of a stack of plates: the product of their full sizes."""
    return math.prod(full_size(frame) for frame in frames)


def batch_size(frames: Iterable[CondIndepStackFrame]) -> int:
    """The number of data in the minibatch of a stack of plates."""
    return math.prod(frame.size for frame in frames)


def undecorated(fn: Distribution) -> Distribution:
    """The distribution below its event dims, masks and expansions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


@dataclass(frozen=True)
class Selection:
    """Which latents an objective is about.

    Attributes:
        objective: the objective's name, for messages.
        names: the latents asked for, or None for every reparameterised latent in plates that
            hold at least two rows.
        particles: the draws per datum that the base pools outside any plate.
    """

    objective: str
    names: frozenset[str] | None
    particles: int

    def takes(self, msg: Message) -> bool:
        """Whether a latent that the guide draws is selected."""
        if self.names is not None:
            generated = msg["name"].removesuffix("_unconstrained")
            auxiliary = msg["infer"].get("is_auxiliary", False)
            return msg["name"] in self.names or (auxiliary and generated in self.names)
        return self._fault(msg) is None

    def check(self, guide: Messages, model: Messages) -> None:
        """Refuse a selection that names what cannot be penalised, or that selects nothing.

        Raises:
            ValueError: naming the site and saying what to do.
        """
        latents = [name for name, msg in model.items() if is_latent(msg)]
        for name in sorted(self.names or ()):
            if name not in latents:
                raise ValueError(
                    f"{self.objective}: sites names '{name}', which is no latent of the model; "
                    f"its latents are {latents}"
                )
            if name not in guide:
                raise ValueError(
                    f"{self.objective}: sites names '{name}', which the guide does not draw; "
                    "leave it out of sites or draw it in the guide"
                )
            if fault := self._fault(guide[name]):
                raise ValueError(f"{self.objective}: sites names '{name}', which {fault}")
        drawn = [name for name in latents if name in guide]
        faults = {name: self._fault(guide[name]) for name in drawn}
        if self.names is None and all(faults.values()):
            reasons = "; ".join(f"'{name}' {fault}" for name, fault in faults.items())
            raise ValueError(
                f"{self.objective}: no latent is left to penalise"
                + (f": {reasons}" if reasons else ", for the guide draws none of the model's")
            )

    def _fault(self, msg: Message) -> str | None:
        if not msg["fn"].has_rsample:
            kind = type(undecorated(msg["fn"])).__name__
            return f"is not reparameterised ({kind}): leave it out of sites, or draw it by rsample"
        frames = row_plates(msg)
        in_plates = data_size(frames) > 1
        if (batch_size(frames) if in_plates else self.particles) < 2:
            return (
                "has a single row: use a larger minibatch in its plate, more particles for a "
                "latent outside plates, or other sites"
            )
        if self.names is None and not in_plates:
            return "is in no plate of several rows: name it in sites to penalise its particles"
        return None

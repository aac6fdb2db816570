# SPDX-License-Identifier: MIT
"""The sites of a run: which are latents, in which plates, and which an objective is about."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
from jax import Array
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)

_static = partial(field, metadata={"static": True})


class Plate(NamedTuple):
    """A plate around a site: ``size`` rows of a minibatch out of ``full_size`` data."""

    name: str
    dim: int
    size: int
    full_size: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Site:
    """What is kept of a sample site: arrays, which may leave a ``vmap``, and plain facts.

    Attributes:
        value: the value drawn or observed, of shape batch_shape + event_shape.
        mask: the product of its masks, which broadcasts to the batch shape; None without any.
        normal: location and scale of a diagonal normal, or of a point mass, whose scale is 0;
            None for any other distribution.
        name: the site's name.
        plates: its plates, left to right.
        event_dim: the number of its event dims.
        kind: the class of its distribution, below event dims, masks and expansions.
        is_observed: whether it is an observation.
        is_auxiliary: whether it is marked as a draw of the guide alone, or is a factor.
        is_reparameterised: whether its distribution has ``rsample``.
        masks_features: whether a mask lies below its event dims.
    """

    value: Array
    mask: Array | None
    normal: tuple[Array, Array] | None
    name: str = _static()
    plates: tuple[Plate, ...] = _static()
    event_dim: int = _static()
    kind: str = _static()
    is_observed: bool = _static()
    is_auxiliary: bool = _static()
    is_reparameterised: bool = _static()
    masks_features: bool = _static()


# An OrderedDict, for JAX sorts the keys of any other.
Sites: TypeAlias = OrderedDict[str, Site]


def is_latent(site: Site) -> bool:
    """Whether a site is a draw of the program, no observation."""
    return not site.is_observed


def is_data(site: Site) -> bool:
    """Whether a site is an observation, no factor."""
    return site.is_observed and site.kind != "Unit"


def data_size(plates: Iterable[Plate]) -> int:
    """The number N of data of a stack of plates: the product of their full sizes."""
    return math.prod(plate.full_size for plate in plates)


def batch_size(plates: Iterable[Plate]) -> int:
    """The number of data in the minibatch of a stack of plates."""
    return math.prod(plate.size for plate in plates)


def undecorated(fn: Distribution) -> Distribution:
    """The distribution below its event dims, masks and expansions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def drawn_in_plates(name: str, guide: Sites, model: Sites) -> Site:
    """A latent as the guide draws it, in the plates of the model where the guide opens none."""
    site = guide[name]
    return site if site.plates or name not in model else replace(site, plates=model[name].plates)


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

    def takes(self, site: Site) -> bool:
        """Whether a latent that the guide draws is selected."""
        return self._fault(site) is None if self.names is None else site.name in self.names

    def check(self, guide: Sites, model: Sites) -> None:
        """Refuse a selection that names what cannot be penalised, or that selects nothing.

        Raises:
            ValueError: naming the site and saying what to do.
        """
        latents = [name for name, site in model.items() if is_latent(site)]
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
            if fault := self._fault(drawn_in_plates(name, guide, model)):
                raise ValueError(f"{self.objective}: sites names '{name}', which {fault}")
        drawn = [name for name in latents if name in guide]
        faults = {name: self._fault(drawn_in_plates(name, guide, model)) for name in drawn}
        if self.names is None and all(faults.values()):
            reasons = "; ".join(f"'{name}' {fault}" for name, fault in faults.items())
            raise ValueError(
                f"{self.objective}: no latent is left to penalise"
                + (f": {reasons}" if reasons else ", for the guide draws none of the model's")
            )

    def _fault(self, site: Site) -> str | None:
        if not site.is_reparameterised:
            kind = site.kind
            return f"is not reparameterised ({kind}): leave it out of sites, or draw it by rsample"
        in_plates = data_size(site.plates) > 1
        if (batch_size(site.plates) if in_plates else self.particles) < 2:
            return (
                "has a single row: use a larger minibatch in its plate, more particles for a "
                "latent outside plates, or other sites"
            )
        if self.names is None and not in_plates:
            return "is in no plate of several rows: name it in sites to penalise its particles"
        return None

# SPDX-License-Identifier: MIT
"""Rows of a plate that stand for all of its data, each with a weight."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from pyro_infovae._core.sites import Plate

NumPoints: TypeAlias = int | Mapping[str, int]

WEIGHTS = "_surrogate_weights"
"""Under which name the weights are given to a run."""


class Surrogate(NamedTuple):
    """Rows that stand for all data of a plate.

    Attributes:
        plate: its name.
        rows: their indices.
    """

    plate: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Survey:
    """What a run of the model tells.

    Attributes:
        plates: those in which it observes data, by name.
        latents: the names of the plates that each latent is in, by its own.
        indexed: the names of the plates by whose indices data are looked up.
        enumerated: the latents that are summed out.
    """

    plates: dict[str, Plate] = field(default_factory=dict)
    latents: dict[str, frozenset[str]] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    enumerated: set[str] = field(default_factory=set)


def check_num_points(surrogate: NumPoints) -> None:
    """Refuse what is no number of rows.

    Raises:
        ValueError: showing it.
    """
    counts = list(surrogate.values()) if isinstance(surrogate, Mapping) else [surrogate]
    if len(counts) != 1 or not isinstance(counts[0], int) or counts[0] < 1:
        raise ValueError(
            "Expected surrogate to be a number of rows, at least 1, or one such number by the name "
            f"of their plate; got {surrogate!r}"
        )


def num_points(surrogate: NumPoints) -> int:
    """The number of rows."""
    return next(iter(surrogate.values())) if isinstance(surrogate, Mapping) else surrogate


def surrogate_of(surrogate: NumPoints, survey: Survey) -> Surrogate:
    """The rows that stand for the data of a model: the same ones in every run.

    They are those of the plate that is named, or else of the one that is subsampled, or of the
    only one.

    Args:
        surrogate: how many.
        survey: of the model.

    Raises:
        ValueError: where there is no such plate, or no such rows of it.

    Example:
        >>> plates = {"data": Plate("data", -1, 5, 20)}
        >>> surrogate_of(4, Survey(plates))
        Surrogate(plate='data', rows=(1, 8, 12, 13))
    """
    plate, num = _plate(surrogate, survey), num_points(surrogate)
    if survey.enumerated:
        raise ValueError(
            "TraceHamiltonian_ELBO: the model sums latents out, and surrogate cannot weight the "
            "rows of a sum: leave surrogate out, and use the whole plate"
        )
    for latent, plates in survey.latents.items():
        if plate.name in plates:
            raise ValueError(
                f"Site '{latent}' is a latent in plate '{plate.name}', and surrogate needs it for "
                "rows that the guide does not draw: leave surrogate out, and name the latents of "
                "the plate in sites"
            )
    if num > plate.full_size:
        raise ValueError(
            f"Expected surrogate <= {plate.full_size}, the size of plate '{plate.name}'; got {num}"
        )
    rows = random.Random(0).sample(range(plate.full_size), num)
    return Surrogate(plate.name, tuple(sorted(rows)))


def check_indexed(surrogate: Surrogate, survey: Survey) -> None:
    """Refuse a model that sees the data of a minibatch and no other.

    Raises:
        ValueError: naming the plate.
    """
    if surrogate.plate not in survey.indexed:
        raise ValueError(
            f"The model does not look up its data by the indices of plate '{surrogate.plate}', so "
            "that it cannot run on the rows of the surrogate: pass it the whole data, and index "
            "them by what the plate gives (with plate as index: ... x[index])"
        )


def _plate(surrogate: NumPoints, survey: Survey) -> Plate:
    plates = survey.plates
    if not plates:
        raise ValueError(
            "TraceHamiltonian_ELBO: surrogate takes rows of a plate, and the model observes data "
            "in none: leave it out"
        )
    if isinstance(surrogate, Mapping):
        names = plates.keys() & surrogate.keys()
    else:
        names = {name for name, plate in plates.items() if plate.size != plate.full_size}
        names = names or set(plates)
    if len(names) != 1:
        some, num = next(iter(plates)), num_points(surrogate)
        raise ValueError(
            f"Expected surrogate to name one of the plates in which the model observes data, "
            f"{list(plates)}; got {surrogate!r}: pass surrogate={{'{some}': {num}}}"
        )
    return plates[names.pop()]

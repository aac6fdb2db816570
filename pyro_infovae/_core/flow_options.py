# SPDX-License-Identifier: MIT
"""The settings of a flow, with the defaults of its path, and their checks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pyro_infovae._core.arrays import Array
from pyro_infovae._core.surrogate import NumPoints, check_num_points
from pyro_infovae._core.tempering import Tempering

Path: TypeAlias = Literal["annealed", "posterior"]
Precondition: TypeAlias = Literal["guide", "none"]
Prefactor: TypeAlias = tuple[float, float, float]
InitialStepSize: TypeAlias = float | Array | Mapping[str, float | Array]

ONES: Prefactor = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class AnnealedOptions:
    """The settings of a flow along the bridge from the guide to the posterior.

    Attributes:
        num_steps: the number of leapfrog steps K.
        step_size: the initial step size.
        persistence: the share of the momentum that is kept between two steps, at first.
        precondition: whether lengths are in units of the guide's scale.
        learn: whether step sizes, inverse temperatures and persistence are learned.
        max_step_size: the bound of learned step sizes, or None.
        per_step: whether every step has a step size of its own.
        surrogate: how many rows stand for the data of a plate, or None.
    """

    num_steps: int
    step_size: InitialStepSize
    persistence: float
    precondition: bool
    learn: bool
    max_step_size: float | None
    per_step: bool
    surrogate: NumPoints | None

    def step_sizes(self, sites: Collection[str]) -> dict[str, float | Array]:
        """The initial step size of each site that moves.

        Raises:
            ValueError: where some are named, and not just these.
        """
        if not isinstance(self.step_size, Mapping):
            return dict.fromkeys(sites, self.step_size)
        named = {
            name if name in sites else f"{name}_unconstrained": size
            for name, size in self.step_size.items()
        }
        if named.keys() != set(sites):
            raise ValueError(
                f"Expected step_size of the sites that move in the guide, {sorted(sites)}; got "
                f"{sorted(self.step_size)}"
            )
        return named

    def step_size_shape(
        self, step_size: float | Array, event_shape: Sequence[int]
    ) -> tuple[int, ...]:
        """The shape of a site's step size: that of an array, one per event dim of a number's."""
        shape = tuple(getattr(step_size, "shape", ()))
        if shape:
            return shape
        return (self.num_steps, *event_shape) if self.per_step else tuple(event_shape)


@dataclass(frozen=True)
class TemperedOptions:
    """The settings of a flow along the posterior, whose momentum cools.

    Attributes:
        num_steps: the number of leapfrog steps K.
        step_size: the initial step size.
        beta_0: the initial inverse temperature.
        tempering: the schedule.
        learn: whether step sizes and temperatures are learned.
        max_step_size: the bound of learned step sizes.
        per_step: whether every step has a step size of its own.
    """

    num_steps: int
    step_size: InitialStepSize
    beta_0: float
    tempering: Tempering
    learn: bool
    max_step_size: float
    per_step: bool


def flow_options(
    path: str,
    *,
    num_steps: int,
    step_size: InitialStepSize | None,
    persistence: float | None,
    precondition: str | None,
    surrogate: NumPoints | None,
    beta_0: float | None,
    tempering: Tempering | None,
    learn: bool,
    max_step_size: float | None,
    per_step: bool | None,
    logp_prefactor: Prefactor | None,
    logq_prefactor: Prefactor | None,
) -> AnnealedOptions | TemperedOptions:
    """The settings of a path, each None among them with its default there.

    Raises:
        ValueError: for one out of range, or that belongs to the other path.
    """
    annealed = {
        "persistence": persistence,
        "precondition": precondition,
        "surrogate": surrogate,
    }
    posterior = {
        "beta_0": beta_0,
        "tempering": tempering,
        "logp_prefactor": logp_prefactor,
        "logq_prefactor": logq_prefactor,
    }
    if num_steps < 1:
        raise ValueError(f"Expected num_steps >= 1; got {num_steps}")
    options: AnnealedOptions | TemperedOptions
    if path == "annealed":
        _refuse(posterior, path, "posterior")
        if precondition not in (None, "guide", "none"):
            raise ValueError(f"Expected precondition to be 'guide' or 'none'; got {precondition!r}")
        persistence = 0.7 if persistence is None else persistence
        if not 0 <= persistence <= 1:
            raise ValueError(f"Expected 0 <= persistence <= 1; got {persistence}")
        if surrogate is not None:
            check_num_points(surrogate)
        options = AnnealedOptions(
            num_steps=num_steps,
            step_size=0.05 if step_size is None else step_size,
            persistence=persistence,
            precondition=precondition != "none",
            learn=learn,
            max_step_size=max_step_size,
            per_step=_are_numbers(step_size) if per_step is None else per_step,
            surrogate=surrogate,
        )
    elif path == "posterior":
        _refuse(annealed, path, "annealed")
        options = TemperedOptions(
            num_steps=num_steps,
            step_size=0.1 if step_size is None else step_size,
            beta_0=0.5 if beta_0 is None else beta_0,
            tempering="quadratic" if tempering is None else tempering,
            learn=learn,
            max_step_size=0.5 if max_step_size is None else max_step_size,
            per_step=bool(per_step),
        )
    else:
        raise ValueError(f"Expected path to be 'annealed' or 'posterior'; got {path!r}")
    _check_step_sizes(options)
    return options


def _are_numbers(step_size: InitialStepSize | None) -> bool:
    """Whether no array says what has a step size of its own."""
    sizes = step_size.values() if isinstance(step_size, Mapping) else [step_size]
    return all(isinstance(size, int | float | None) for size in sizes)


def _refuse(options: Mapping[str, Any], path: str, other: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"Expected no {name} on path={path!r}; got {value!r}: leave it out, or pass "
                f"path={other!r}, which has one"
            )


def _check_step_sizes(options: AnnealedOptions | TemperedOptions) -> None:
    if not isinstance(options.step_size, Mapping):
        _check_step_size("step_size", options.step_size, options)
        return
    for site, size in options.step_size.items():
        _check_step_size(f"step_size[{site!r}]", size, options)


def _check_step_size(
    name: str, size: float | Array, options: AnnealedOptions | TemperedOptions
) -> None:
    shape = tuple(getattr(size, "shape", ()))
    if options.per_step and shape and shape[0] != options.num_steps:
        raise ValueError(
            f"Expected {name} with a leading axis of num_steps={options.num_steps}, one entry per "
            f"step; got shape {shape}"
        )
    shown = size.tolist() if hasattr(size, "tolist") else size
    numbers = size.reshape(-1).tolist() if hasattr(size, "reshape") else [float(size)]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"Expected {name} >= 0 and finite; got {shown}")
    if not options.learn:
        return
    if not all(number > 0 for number in numbers):
        raise ValueError(
            f"Expected {name} > 0 where it is learned; got {shown}: start above 0, or pass "
            "learn=False"
        )
    maximum = options.max_step_size
    if maximum is not None and not all(number < maximum for number in numbers):
        raise ValueError(
            f"Expected {name} < max_step_size={maximum} where it is learned; got {shown}: raise "
            "max_step_size, or pass learn=False"
        )

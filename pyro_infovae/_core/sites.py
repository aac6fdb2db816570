# SPDX-License-Identifier: MIT
"""What is kept of the sites of a run, and which of them an objective is about."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pyro_infovae._core.arrays import namespace

SAME_SCALE = 1e-6
"""How far, in proportion, the scales of two sites may differ by rounding."""


class Plate(NamedTuple):
    """A plate around a site: ``size`` rows of a minibatch out of ``full_size`` data."""

    name: str
    dim: int
    size: int
    full_size: int


class Enumeration(NamedTuple):
    """How a site is enumerated in parallel.

    Attributes:
        dim: the dim of its values.
        is_sampled: whether the values are several draws, not all that there are.
        log_prob: the log probability of each value.
    """

    dim: int
    is_sampled: bool
    log_prob: Any


@dataclass(frozen=True, eq=False)
class Site:
    """A sample site of a run.

    Attributes:
        value: the value drawn or observed, of shape batch_shape + event_shape.
        mask: the product of its masks, which broadcasts to the batch shape; None without any.
        normal: location and scale of a diagonal normal, or of a point mass, whose scale is 0;
            None for any other distribution.
        name: the site's name.
        plates: its vectorised plates, left to right, without the plate of particles.
        event_dim: the number of its event dims.
        kind: the class of its distribution, below event dims, masks and expansions.
        is_latent: whether it is a draw of the program, not an observation.
        is_data: whether it is an observation that is neither a factor nor deterministic.
        is_auxiliary: whether it is marked as a draw of the guide alone, or is a factor.
        is_reparameterised: whether its distribution has ``rsample``.
        masks_features: whether a mask lies below its event dims.
        batch_shape: that of its distribution.
        mask_numbers: which of the masks of its run it is under.
        asks_enumeration: whether the program marks it to be enumerated.
        enumeration: how it is enumerated, if it is.
        kept: where an observation's entries are not masked, which broadcasts to its value; None
            where all count.
        scale: the factor on its log density, where that can be kept.
        fn: its distribution, likewise.
    """

    value: Any
    mask: Any
    normal: tuple[Any, Any] | None
    name: str
    plates: tuple[Plate, ...]
    event_dim: int
    kind: str
    is_latent: bool
    is_data: bool
    is_auxiliary: bool
    is_reparameterised: bool
    masks_features: bool
    batch_shape: tuple[int, ...]
    mask_numbers: tuple[int, ...] = ()
    asks_enumeration: bool = False
    enumeration: Enumeration | None = None
    kept: Any = None
    scale: Any = None
    fn: Any = None


# Ordered explicitly, for JAX sorts the keys of a plain dictionary.
Sites: TypeAlias = OrderedDict[str, Site]


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the guide and of the model replayed against it.

    Attributes:
        guide: the guide's sites by name, in order.
        model: the model's sites by name, in order.
        indices: the minibatch of every subsampled plate, by its name.
        mutable: the values of NumPyro's mutable sites after the run, by name.
        selected: the latents that the objective is about, auxiliary sites included.
        particle_plate: the plate of vectorised particles, if there is one.
        particle: the only one of them that counts; None for all.
    """

    guide: Sites
    model: Sites
    indices: dict[str, Any]
    mutable: dict[str, Any] = field(default_factory=dict)
    selected: frozenset[str] = frozenset()
    particle_plate: Plate | None = None
    particle: int | None = None


def kept_entries(value: Any, masks: Iterable[tuple[Any, int]]) -> Any:
    """Where masks are all true, each given with the event dims below it; None without any.

    A mask that is trivially true is none.
    """
    xp, kept = namespace(value), None
    for mask, event_dim in masks:
        if mask is not None and mask is not True:
            mask = xp.asarray(mask)
            mask = mask.reshape((*mask.shape, *(1,) * event_dim))
            kept = mask if kept is None else xp.logical_and(kept, mask)
    return kept


def subsample_factor(plates: Iterable[Plate]) -> float:
    """The factor that sites of a stack of plates are scaled by: the product of N / B."""
    return math.prod(plate.full_size / plate.size for plate in plates)


def common_scale(scales: Sequence[Any]) -> Any:
    """The factor that all sites of a program share beside those of their plates, or else 1.

    Args:
        scales: the factor on each: a number, or an array, which nothing waits for.

    Example:
        >>> common_scale([0.25, 0.25]), common_scale([0.25, 1.0])
        (0.25, 1.0)
    """
    if all(getattr(scale, "ndim", 0) == 0 for scale in scales):
        first, *others = scales
        low, high = abs(first) * (1 - SAME_SCALE), abs(first) * (1 + SAME_SCALE)
        shared = (first != 0) & (first == first)
        for other in others:
            shared = shared & (low <= abs(other)) & (abs(other) <= high)
        if isinstance(shared, bool):
            return first if shared else 1.0
        return namespace(shared, first).where(shared, first, 1.0)
    return 1.0


def check_kl_is_separable(name: str, run: Run, kl_weight: Any) -> None:
    """Refuse a KL weight that cannot be applied to one latent alone.

    Raises:
        NotImplementedError: when the guide's density of the latent sits in an auxiliary site that
            other latents share, or when its prior depends on a latent enumerated in the model.
    """
    shared = [
        other
        for other, site in run.guide.items()
        if site.is_auxiliary
        and other not in run.selected
        and other.removesuffix("_unconstrained") not in run.model
    ]
    if shared and run.guide[name].kind == "Delta":
        raise NotImplementedError(
            f"The KL of '{name}' cannot be weighted by {kl_weight:g}: the guide draws it from "
            f"'{shared[0]}', whose density is not its own; keep the weight at 1 (alpha=0 or "
            "beta=1), or use a guide with one density per latent, such as AutoNormal"
        )
    for other, site in run.model.items():
        if site.enumeration is None or other in run.guide:
            continue
        prior, dim = run.model[name].batch_shape, site.enumeration.dim
        if len(prior) >= -dim and prior[dim] > 1:
            raise NotImplementedError(
                f"The KL of '{name}' cannot be weighted by {kl_weight:g}: its prior depends on "
                f"'{other}', which is summed out in the model; keep the weight at 1 (alpha=0 or "
                f"beta=1), or draw '{other}' in the guide"
            )

# SPDX-License-Identifier: MIT
"""How much each row counts: masks, and probabilities of the latents that a guide enumerates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float

from pyro_infovae._core.arrays import cast, namespace
from pyro_infovae._core.sites import Run, Site


def row_weights(group: Sequence[Site], run: Run, shape: tuple[int, ...]) -> Float[Any, ...] | None:
    """How much each row counts: 0 where it is masked, q(y | x) for z | y enumerated.

    An array that broadcasts to the batch shape of the group; None where all count alike.
    """
    sites = [site for drawn in group for site in (drawn, run.guide[drawn.name])]
    for site in sites:
        if site.masks_features:
            raise ValueError(
                f"Site '{site.name}' masks single features of its rows: call .mask() after "
                ".to_event(), so that whole rows are masked"
            )
    value = group[0].value
    masks = [_per_row(site.mask, shape) for site in sites if site.mask is not None]
    factors = [cast(mask, value.dtype) for mask in masks]
    if (probability := _enumerated_probability(group, run, shape)) is not None:
        factors.append(probability)
    if not factors:
        return None
    return math.prod(factors)


def _per_row(mask: Any, shape: tuple[int, ...]) -> Any:
    """A mask without the dims that the model enumerates; a row counts if it does for any value."""
    while mask.ndim > len(shape):
        mask = mask.any(0)
    return mask


def _enumerated_probability(
    group: Sequence[Site], run: Run, shape: tuple[int, ...]
) -> Float[Any, ...] | None:
    """q(y | x) on the rows of z | y, for the latents y that the guide enumerates."""
    names = {site.name for site in group}
    relevant = {
        name: site.enumeration
        for name, site in run.guide.items()
        if site.enumeration is not None
        and len(shape) >= -site.enumeration.dim
        and shape[site.enumeration.dim] > 1
    }
    if not relevant:
        return None
    for name, enumeration in relevant.items():
        if name in names or enumeration.is_sampled:
            raise NotImplementedError(
                f"Site '{name}' is drawn several times in parallel (num_samples): use "
                "num_particles instead, which the penalty pools"
            )
    log_q = sum(enumeration.log_prob for enumeration in relevant.values())
    dims = [enumeration.dim for enumeration in relevant.values()]
    if len(set(dims)) < len(dims) or not fits(tuple(log_q.shape), shape):
        raise NotImplementedError(
            f"Site '{group[0].name}' depends on {list(relevant)}, whose joint probability per row "
            "of it is not known: name others in sites, or sample these instead of enumerating "
            "them"
        )
    return namespace(log_q).exp(log_q)


def fits(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to a larger one."""
    kept = larger[len(larger) - len(shape) :] if len(shape) <= len(larger) else ()
    return len(kept) == len(shape) and all(
        size in (1, full) for size, full in zip(shape, kept, strict=True)
    )

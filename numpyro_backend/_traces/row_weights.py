# SPDX-License-Identifier: MIT
"""How much each row counts: nothing where it is masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)

from numpyro_backend.sites import Sites


def row_weights(
    names: Sequence[str], messages: Sites, guide: Sites, shape: tuple[int, ...]
) -> Float[Array, " rows"] | None:
    """How much each row of a group counts: 0 where it is masked, else 1.

    Args:
        names: the latents of the group.
        messages: the sites of a run that drew or replayed them.
        guide: the guide's sites.
        shape: the batch shape that the rows come from.

    Returns:
        The weights, or None where every row counts alike.

    Raises:
        ValueError: for a mask on single features.
    """
    sites = [site for name in names for site in (messages[name], guide[name])]
    for site in sites:
        if site.masks_features:
            raise ValueError(
                f"Site '{site.name}' masks single features of its rows: call .mask() after "
                ".to_event(), so that whole rows are masked"
            )
    masks = [jnp.broadcast_to(site.mask, shape) for site in sites if site.mask is not None]
    if not masks:
        return None
    dtype = jnp.result_type(messages[names[0]].value)
    return reduce(jnp.logical_and, masks).reshape(-1).astype(dtype)


def mask_of(fn: Distribution) -> Bool[Array, " *batch"] | None:
    """The product of the masks of a distribution that are not trivially true."""
    masks = []
    while isinstance(fn, MaskedDistribution | ExpandedDistribution):
        mask = getattr(fn, "_mask", True)
        if mask is not True:
            masks.append(jnp.asarray(mask))
        fn = fn.base_dist
    if not masks:
        return None
    shape = jnp.broadcast_shapes(*(mask.shape for mask in masks))
    return reduce(jnp.logical_and, (jnp.broadcast_to(mask, shape) for mask in masks))


def masks_features(fn: Distribution) -> bool:
    """Whether a distribution is masked below its event dims."""
    in_event = False
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        in_event = in_event or isinstance(fn, Independent)
        if in_event and isinstance(fn, MaskedDistribution) and fn._mask is not True:
            return True
        fn = fn.base_dist
    return False

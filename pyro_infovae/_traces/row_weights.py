# SPDX-License-Identifier: MIT
"""How much each row counts: masks, and probabilities of the latents that a guide enumerates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.torch import Independent
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_infovae.sites import Messages


def enumerated_sites(guide: Messages) -> list[Message]:
    """The latents that the guide enumerates in parallel."""
    return [msg for msg in guide.values() if "_enumerate_dim" in msg["infer"]]


def row_weights(
    names: Sequence[str], messages: Messages, guide: Messages, shape: torch.Size
) -> Float[Tensor, " rows"] | None:
    """How much each row of a group counts: 0 where it is masked, q(y | x) for z | y enumerated.

    Args:
        names: the latents of the group.
        messages: the messages of a run that drew or replayed them.
        guide: the guide's messages.
        shape: the batch shape that the rows come from.

    Returns:
        The weights, or None where every row counts alike.

    Raises:
        ValueError: for a mask on single features.
        NotImplementedError: for rows that depend on enumerated latents in a way not known here.
    """
    dtype = messages[names[0]]["value"].dtype
    factors = [
        mask.to(dtype)
        for name in names
        for msg in (messages[name], guide[name])
        for mask in _masks(msg)
    ]
    probability = _enumerated_probability(names, guide, shape)
    if probability is not None:
        factors.append(probability)
    if not factors:
        return None
    product = math.prod(factors[1:], start=factors[0])
    return product.expand(shape).reshape(-1)


def _masks(msg: Message) -> list[Tensor]:
    """The masks of a site, of whole rows."""
    fn = msg["fn"]
    while isinstance(fn, MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    if isinstance(fn, Independent) and isinstance(fn.base_dist, MaskedDistribution):
        raise ValueError(
            f"Site '{msg['name']}' masks single features of its rows: call .mask() after "
            ".to_event(), so that whole rows are masked"
        )
    return masks_of(msg)


def masks_of(msg: Message) -> list[Tensor]:
    """The masks of a site that are not trivially true: its context's and its distribution's."""
    masks, fn, device = [msg["mask"]], msg["fn"], msg["value"].device
    while isinstance(fn, MaskedDistribution | ExpandedDistribution):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return [
        torch.as_tensor(mask, device=device)
        for mask in masks
        if mask is not None and mask is not True
    ]


def _enumerated_probability(
    names: Sequence[str], guide: Messages, shape: torch.Size
) -> Tensor | None:
    """q(y | x) on the rows of z | y, for the latents y that the guide enumerates."""
    relevant = [
        msg
        for msg in enumerated_sites(guide)
        if len(shape) >= -msg["infer"]["_enumerate_dim"]
        and shape[msg["infer"]["_enumerate_dim"]] > 1
    ]
    if not relevant:
        return None
    for msg in relevant:
        if msg["name"] in names or msg["infer"].get("num_samples"):
            raise NotImplementedError(
                f"Site '{msg['name']}' is drawn several times in parallel (num_samples): use "
                "num_particles instead, which the penalty pools"
            )
    log_q = sum(msg["fn"].log_prob(msg["value"]) for msg in relevant)
    dims = [msg["infer"]["_enumerate_dim"] for msg in relevant]
    if len(set(dims)) < len(dims) or torch.broadcast_shapes(log_q.shape, shape) != shape:
        raise NotImplementedError(
            f"Site '{names[0]}' depends on {[msg['name'] for msg in relevant]}, whose joint "
            "probability per row of it is not known: leave it out of sites, or sample these "
            "instead of enumerating them"
        )
    return log_q.exp()

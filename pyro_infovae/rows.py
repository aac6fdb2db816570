# SPDX-License-Identifier: MIT
"""From the messages of a run to rows: one per datum and particle, with features and weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from pyro.distributions import Delta, Normal
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Distribution

from pyro_infovae._arrays.joining import joined
from pyro_infovae._traces.row_weights import enumerated_sites, row_weights
from pyro_infovae.sites import (
    FLOWED,
    Messages,
    batch_size,
    data_size,
    is_data,
    is_latent,
    row_plates,
    undecorated,
)


@dataclass(frozen=True)
class Rows:
    r"""The latents of one group, a row per datum and particle.

    Attributes:
        latents: by site name, the values with their event dims flattened, (rows, features).
        weights: nonnegative weights of the rows, 0 for a masked one; None where all count alike.
        num_data: rows per particle; row r belongs to datum r modulo ``num_data`` of its particle's
            minibatch. None outside plates, where the particles themselves are the rows.
        total: N, the product of the full sizes of the group's plates.
        data: by site name, the observed values in the same plates, (rows, \*event); empty for rows
            drawn from the prior.
    """

    latents: dict[str, Float[Tensor, "rows _"]]
    weights: Float[Tensor, " rows"] | None
    num_data: int | None
    total: int
    data: dict[str, Shaped[Tensor, " rows *event"]] = field(default_factory=dict)

    @property
    def values(self) -> Float[Tensor, "rows features"]:
        """The features of all latents of the group side by side."""
        return joined(tuple(self.latents.values()), dim=-1)


def pool(parts: Sequence[Rows]) -> Rows:
    """The rows of several runs, one below the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    weights = [weights_or_ones(part) for part in parts] if _any_weighted(parts) else None
    return Rows(
        latents={name: joined([part.latents[name] for part in parts]) for name in first.latents},
        weights=None if weights is None else joined(weights),
        num_data=first.num_data,
        total=first.total,
    )


def weights_or_ones(part: Rows) -> Float[Tensor, " rows"]:
    """The weights of rows, 1 where all count alike."""
    values = part.values
    return values.new_ones(len(values)) if part.weights is None else part.weights


def group_by_plates(model: Messages, selected: Iterable[str]) -> list[tuple[str, ...]]:
    """The selected latents of a model, those with the same stack of plates together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    names = set(selected)
    for name, msg in model.items():
        if name in names and is_latent(msg):
            plates = tuple(frame.name for frame in row_plates(msg))
            groups.setdefault(plates, []).append(name)
    return [tuple(group) for group in groups.values()]


def rows_of(names: Sequence[str], messages: Messages, guide: Messages) -> Rows:
    """The rows of a group as the messages hold them.

    Args:
        names: the latents of the group.
        messages: the messages of a run that drew or replayed them.
        guide: the guide's messages, for its masks and for the latents it enumerates.
    """
    group = [messages[name] for name in names]
    shape = _batch_shape(group, guide)
    frames = row_plates(group[0])
    total = data_size(frames)
    return Rows(
        latents={
            name: flatten(msg["value"], msg["fn"].event_dim, shape)
            for name, msg in zip(names, group, strict=True)
        },
        weights=row_weights(names, messages, guide, shape),
        num_data=batch_size(frames) if total > 1 else None,
        total=total,
    )


def data_of(
    names: Sequence[str], messages: Messages, guide: Messages
) -> dict[str, Shaped[Tensor, " rows *event"]]:
    """The observed values in the plates of a group, by site name, a row per row of the group."""
    group = [messages[name] for name in names]
    shape = _batch_shape(group, guide)
    plates = {frame.name for frame in row_plates(group[0])}
    observed = {
        name: msg
        for name, msg in messages.items()
        if is_data(msg) and {frame.name for frame in row_plates(msg)} == plates
    }
    return {
        name: expand_rows(msg["value"], msg["fn"].event_dim, shape)
        for name, msg in observed.items()
    }


def expand_rows(
    tensor: Tensor, event_dim: int, shape: torch.Size
) -> Shaped[Tensor, " rows *event"]:
    """A tensor with one row per index of the batch shape, its event dims as they are."""
    event = tensor.shape[tensor.dim() - event_dim :]
    return tensor.expand(shape + event).reshape(shape.numel(), *event)


def flatten(tensor: Tensor, event_dim: int, shape: torch.Size) -> Float[Tensor, "rows features"]:
    """A tensor with one row per index of the batch shape, its event dims as features."""
    return expand_rows(tensor, event_dim, shape).reshape(shape.numel(), -1)


def normal_rows(
    name: str, messages: Messages, guide: Messages
) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "rows features"]] | None:
    """Location and scale of a latent's diagonal normal, per row; None for any other density.

    A point mass is the normal of scale 0. A point mass of ``AutoNormal`` over a real support is
    the normal that it was drawn from.
    """
    msg = messages[name]
    parameters = _normal_parameters(_generating(msg, messages))
    if parameters is None:
        return None
    shape = _batch_shape([guide[name]], guide)
    batch = msg["fn"].batch_shape
    if torch.broadcast_shapes(batch, shape) != shape:
        raise NotImplementedError(
            f"The prior of '{name}' is a mixture over a latent that the model sums out, which has "
            "no closed form here: use estimator='unbiased'"
        )
    loc, scale = (flatten(part, msg["fn"].event_dim, shape) for part in parameters)
    return loc, scale


def _generating(msg: Message, messages: Messages) -> Distribution:
    auxiliary = messages.get(f"{msg['name']}_unconstrained")
    if auxiliary is None or msg["infer"].get(FLOWED):
        return msg["fn"]
    return auxiliary["fn"] if auxiliary["value"].shape == msg["value"].shape else msg["fn"]


def _normal_parameters(fn: Distribution) -> tuple[Tensor, Tensor] | None:
    fn = undecorated(fn)
    if isinstance(fn, Normal):
        return fn.loc, fn.scale
    if isinstance(fn, Delta):
        return fn.v, torch.zeros_like(fn.v)
    return None


def _batch_shape(group: Sequence[Message], guide: Messages) -> torch.Size:
    shape = torch.broadcast_shapes(
        *(msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim] for msg in group)
    )
    known = {f.dim for msg in group for f in msg["cond_indep_stack"] if f.vectorized}
    known |= {msg["infer"]["_enumerate_dim"] for msg in enumerated_sites(guide)}
    for dim in range(-len(shape), 0):
        if shape[dim] > 1 and dim not in known:
            raise ValueError(
                f"Site '{group[0]['name']}' has batch shape {tuple(shape)}, of which dim {dim} "
                "belongs to no plate: declare a pyro.plate for it, or make it an event dim with "
                ".to_event()"
            )
    return shape


def _any_weighted(parts: Sequence[Rows]) -> bool:
    return any(part.weights is not None for part in parts)

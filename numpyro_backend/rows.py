# SPDX-License-Identifier: MIT
"""From the sites of a run to rows: one per datum and particle, with features and weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Shaped
from numpyro.distributions import Delta, Distribution, Normal

from numpyro_backend._traces.row_weights import row_weights
from numpyro_backend.sites import (
    Site,
    Sites,
    batch_size,
    data_size,
    is_data,
    is_latent,
    undecorated,
)

T = TypeVar("T")


@jax.tree_util.register_dataclass
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

    latents: OrderedDict[str, Float[Array, "rows _"]]
    weights: Float[Array, " rows"] | None
    num_data: int | None = field(metadata={"static": True})
    total: int = field(metadata={"static": True})
    data: dict[str, Shaped[Array, " rows *event"]] = field(default_factory=dict)

    @property
    def values(self) -> Float[Array, "rows features"]:
        """The features of all latents of the group side by side."""
        return jnp.concatenate(tuple(self.latents.values()), axis=-1)


def pool(parts: T, axes: int = 1) -> T:
    """The rows of several runs, stacked along the leading axes, one below the other."""
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[axes + 1 :]), parts)


def group_by_plates(model: Sites, selected: Iterable[str]) -> list[tuple[str, ...]]:
    """The selected latents of a model, those with the same stack of plates together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    names = set(selected)
    for name, site in model.items():
        if name in names and is_latent(site):
            groups.setdefault(tuple(plate.name for plate in site.plates), []).append(name)
    return [tuple(group) for group in groups.values()]


def rows_of(names: Sequence[str], messages: Sites, guide: Sites) -> Rows:
    """The rows of a group as the sites of a run hold them.

    Args:
        names: the latents of the group.
        messages: the sites of a run that drew or replayed them.
        guide: the guide's sites, for its masks.
    """
    group = [messages[name] for name in names]
    shape = _batch_shape(group)
    plates = group[0].plates
    total = data_size(plates)
    return Rows(
        latents=OrderedDict(
            (site.name, flatten(site.value, site.event_dim, shape)) for site in group
        ),
        weights=row_weights(names, messages, guide, shape),
        num_data=batch_size(plates) if total > 1 else None,
        total=total,
    )


def data_of(names: Sequence[str], messages: Sites) -> dict[str, Shaped[Array, " rows *event"]]:
    """The observed values in the plates of a group, by site name, a row per row of the group."""
    group = [messages[name] for name in names]
    shape = _batch_shape(group)
    plates = {plate.name for plate in group[0].plates}
    return {
        name: expand_rows(site.value, site.event_dim, shape)
        for name, site in messages.items()
        if is_data(site) and {plate.name for plate in site.plates} == plates
    }


def expand_rows(
    values: Array, event_dim: int, shape: tuple[int, ...]
) -> Shaped[Array, " rows *event"]:
    """An array with one row per index of the batch shape, its event dims as they are."""
    event = values.shape[values.ndim - event_dim :]
    return jnp.broadcast_to(values, shape + event).reshape(math.prod(shape), *event)


def flatten(values: Array, event_dim: int, shape: tuple[int, ...]) -> Float[Array, "rows features"]:
    """An array with one row per index of the batch shape, its event dims as features."""
    rows = expand_rows(values, event_dim, shape)
    return rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))


def normal_rows(
    name: str, messages: Sites, model: Sites
) -> tuple[Float[Array, "rows features"], Float[Array, "rows features"]] | None:
    """Location and scale of a latent's diagonal normal, per row; None for any other density.

    A point mass is the normal of scale 0.

    Args:
        name: the latent.
        messages: the sites of the guide, or of the model.
        model: the model's sites, for the rows.
    """
    site = messages[name]
    if site.normal is None:
        return None
    shape = _batch_shape([model[name]])
    loc, scale = (flatten(part, site.event_dim, shape) for part in site.normal)
    return loc, scale


def normal_parameters(fn: Distribution) -> tuple[Array, Array] | None:
    """Location and scale of a diagonal normal or a point mass, of the shape of a draw."""
    base = undecorated(fn)
    if isinstance(base, Normal):
        parameters = base.loc, base.scale
    elif isinstance(base, Delta):
        parameters = base.v, jnp.zeros_like(base.v)
    else:
        return None
    loc, scale = (jnp.broadcast_to(part, fn.shape()) for part in parameters)
    return loc, scale


def _batch_shape(group: Sequence[Site]) -> tuple[int, ...]:
    shape = jnp.broadcast_shapes(
        *(site.value.shape[: site.value.ndim - site.event_dim] for site in group)
    )
    known = {plate.dim for site in group for plate in site.plates}
    for dim in range(-len(shape), 0):
        if shape[dim] > 1 and dim not in known:
            raise ValueError(
                f"Site '{group[0].name}' has batch shape {shape}, of which dim {dim} belongs to "
                "no plate: declare a numpyro.plate for it, or make it an event dim with "
                ".to_event()"
            )
    return shape

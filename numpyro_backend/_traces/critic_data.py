# SPDX-License-Identifier: MIT
"""The data that a critic sees beside a group of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jax import Array
from jaxtyping import Shaped

from numpyro_backend.groups import Group, Rows
from pyro_infovae._core.rows import batch_shape, counts_of
from pyro_infovae._core.sites import Run

DataSource: TypeAlias = str | Callable[..., Array] | None


def only_group(groups: Sequence[Group], *, caller: str) -> Group:
    """The group of latents that a critic sees.

    Raises:
        ValueError: for several groups, or one outside plates, whose rows share one datum.
    """
    if len(groups) > 1:
        raise ValueError(
            f"{caller}: the latents {[list(group.names) for group in groups]} are in different "
            "plates or under different masks, and a critic sees one row of each: choose by sites"
        )
    (group,) = groups
    if not group.plates:
        raise ValueError(
            f"{caller}: the latents {list(group.names)} are in no plate of data, so there "
            "is no datum that they could tell of: choose by sites"
        )
    return group


def critic_rows(source: DataSource, group: Group, *, caller: str) -> Rows:
    r"""The rows of a group of latents with their data, named ``"x"``.

    Rows whose data are masked do not count, and what a row that does not count holds is 0.

    Args:
        source: the name of an observed site, a function of the model's arguments to an array
            (data, \*event), or None for the only observed site in the group's plates.
        group: the latents.
        caller: who needs the data, for messages.

    Raises:
        ValueError: when there is no such site, or several and none is named, or when the function
            gives an array of another shape.
    """
    if callable(source):
        data = jnp.asarray(source(*group.args, **group.kwargs))
        x = group.per_row(lambda run: _per_row(_minibatch(data, group, run), group, run))
        return group.with_data({"x": x}).cleared()
    observed = group.data
    name = next(iter(observed)) if source is None and len(observed) == 1 else source
    if name not in observed:
        raise ValueError(_not_found(source, group, list(observed), caller))
    assert isinstance(name, str)
    counts = group.per_row(lambda run: counts_of(name, group.names, run))
    return group.with_data({"x": observed[name]}, counts).cleared()


def _not_found(source: DataSource, group: Group, observed: list[str], caller: str) -> str:
    wanted = "one observed site" if source is None else f"the observed site '{source}'"
    found = (
        f"{observed}: pass data= one of them, or a function of the model's arguments"
        if observed
        else "none: pass data= a function of the model's arguments, or choose latents by sites"
    )
    return f"{caller}: Expected {wanted} in the plates of {list(group.names)}; got {found}"


def _per_row(minibatch: Array, group: Group, run: Run) -> Shaped[Array, " rows *event"]:
    """A minibatch for each of the enumerated values that share it."""
    rows = math.prod(batch_shape([run.model[name] for name in group.names], run))
    shape = (rows // len(minibatch), *minibatch.shape)
    return jnp.broadcast_to(minibatch, shape).reshape(-1, *minibatch.shape[1:])


def _minibatch(data: Array, group: Group, run: Run) -> Shaped[Array, " data *event"]:
    """The data of one run's minibatch, all of whose plates are in the leading dims of the data."""
    minibatch = data
    for dim, plate in enumerate(group.plates[: data.ndim]):
        if minibatch.shape[dim] != plate.size and minibatch.shape[dim] == plate.full_size:
            minibatch = jnp.take(minibatch, run.indices[plate.name], axis=dim)
    sizes = tuple(plate.size for plate in group.plates)
    if minibatch.shape[: len(sizes)] != sizes:
        raise ValueError(
            f"Expected data(*args) of shape ({', '.join(map(str, sizes))}, *event), as the plates "
            f"of {list(group.names)}, or of their full size; got {data.shape}"
        )
    return minibatch.reshape(-1, *minibatch.shape[len(sizes) :])

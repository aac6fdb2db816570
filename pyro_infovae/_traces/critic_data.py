# SPDX-License-Identifier: MIT
"""The rows that a critic sees: one group of latents, and the data in its plates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Shaped
from torch import Tensor

from pyro_infovae._arrays.joining import joined
from pyro_infovae._traces.runs import Run
from pyro_infovae.groups import Group
from pyro_infovae.sites import data_size, full_size, row_plates

DataSource: TypeAlias = str | Callable[..., Tensor] | None


def only_group(groups: Sequence[Group], *, asker: str) -> Group:
    """The group of latents that a critic sees.

    Raises:
        ValueError: for several groups, or one outside plates, whose rows share one datum.
    """
    if len(groups) > 1:
        raise ValueError(
            f"{asker}: the latents {[list(group.names) for group in groups]} are in different "
            "plates, and a critic sees one row of each: choose by sites"
        )
    (group,) = groups
    if data_size(row_plates(group.runs[0].model[group.names[0]])) == 1:
        raise ValueError(
            f"{asker}: the latents {list(group.names)} are in no plate of several data, so there "
            "is no datum that they could tell of: choose by sites"
        )
    return group


def critic_data(
    source: DataSource, group: Group, num_rows: int, *, asker: str
) -> Shaped[Tensor, " rows *event"]:
    r"""The data of a group of latents, a row per row of the latents.

    Args:
        source: the name of an observed site, a function of the model's arguments to a tensor
            (data, \*event), or None for the only observed site in the group's plates.
        group: the latents.
        num_rows: how many rows they have.
        asker: who needs the data, for messages.

    Raises:
        ValueError: when there is no such site, or several and none is named, or when the function
            gives a tensor of another shape.
    """
    if callable(source):
        return _of_arguments(source(*group.args, **group.kwargs), group, num_rows)
    observed = group.data
    if source is None and len(observed) == 1:
        return next(iter(observed.values()))
    if source in observed:
        return observed[source]
    wanted = "one observed site" if source is None else f"the observed site '{source}'"
    raise ValueError(
        f"{asker}: Expected {wanted} in the plates of {list(group.names)}; got {list(observed)}: "
        "pass data= one of them, or a function of the model's arguments"
    )


def _of_arguments(data: Tensor, group: Group, num_rows: int) -> Shaped[Tensor, " rows *event"]:
    parts = [_minibatch(data, group, run) for run in group.runs]
    repeats = num_rows // sum(len(part) for part in parts)
    return joined([part.expand(repeats, *part.shape).flatten(0, 1) for part in parts])


def _minibatch(data: Tensor, group: Group, run: Run) -> Shaped[Tensor, " data *event"]:
    """The data of one run's minibatch, all of whose plates are in the leading dims of the data."""
    frames = row_plates(run.model[group.names[0]])
    minibatch = data
    for dim, frame in enumerate(frames[: data.dim()]):
        if minibatch.shape[dim] != frame.size and minibatch.shape[dim] == full_size(frame):
            minibatch = minibatch.index_select(dim, run.model[frame.name]["value"])
    sizes = tuple(frame.size for frame in frames)
    if tuple(minibatch.shape[: len(sizes)]) != sizes:
        raise ValueError(
            f"Expected data(*args) of shape ({', '.join(map(str, sizes))}, *event), as the plates "
            f"of {list(group.names)}, or of their full size; got {tuple(data.shape)}"
        )
    return minibatch.flatten(0, len(sizes) - 1)

# SPDX-License-Identifier: MIT
"""The rows of a group of latents on all ranks of a process group."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

from pyro_infovae._arrays.gathering import exchange, gather_rows, world_size
from pyro_infovae._core.rows import Rows


def gather(rows: Rows) -> Rows:
    """The rows of all ranks, as those of one minibatch that holds the data of all.

    Every rank has to call this alike. With no process group, or one rank, the rows are as given.

    Args:
        rows: rows of this rank.

    Returns:
        The gathered rows, with the gradient of :func:`~pyro_infovae._arrays.gathering.gather_rows`.

    Raises:
        ValueError: on every rank, where the ranks differ in the number of their rows or in
            anything else but their values, or where a minibatch holds its whole data set.
    """
    if world_size() == 1:
        return rows
    layouts = exchange(_Layout.of(rows))
    _check(layouts)
    batch_size = rows.batch_size
    num_rows = batch_size or layouts[0].rows
    is_weighted = any(layout.weighted for layout in layouts)
    return replace(
        rows,
        latents=OrderedDict((n, gather_rows(v, num_rows)) for n, v in rows.latents.items()),
        weights=gather_rows(rows.dense_weights, num_rows) if is_weighted else None,
        batch_size=None if batch_size is None else world_size() * batch_size,
        data={name: gather_rows(values, num_rows) for name, values in rows.data.items()},
    )


class _Layout(NamedTuple):
    """What the ranks have to agree on, but for ``weighted``."""

    rows: int
    tensors: dict[str, tuple[tuple[int, ...], str]]
    batch_size: int | None
    num_data: int
    weighted: bool

    @classmethod
    def of(cls, rows: Rows) -> _Layout:
        tensors = {
            name: (tuple(tensor.shape[1:]), str(tensor.dtype))
            for name, tensor in (*rows.latents.items(), *rows.data.items())
        }
        num_rows = len(next(iter(rows.latents.values())))
        return cls(num_rows, tensors, rows.batch_size, rows.num_data, rows.weights is not None)


def _check(ranks: list[_Layout]) -> None:
    first = ranks[0]
    names = list(first.tensors)
    rows = [layout.rows for layout in ranks]
    if any(count != first.rows for count in rows):
        raise ValueError(
            f"Expected as many rows of {names} on every rank; got {rows}: drop the last minibatch, "
            "or pad it and mask what is added"
        )
    for rank, layout in enumerate(ranks):
        if layout._replace(weighted=first.weighted) != first:
            raise ValueError(
                "Expected the same latents, shapes and plate sizes on every rank; got "
                f"{first._asdict()} on rank 0 and {layout._asdict()} on rank {rank}"
            )
    if first.batch_size == first.num_data:
        raise ValueError(
            f"Expected each of {len(ranks)} ranks to hold a part of the data of {names}; got "
            f"plates whose {first.num_data} data are all in the rank's minibatch: pass pyro.plate "
            "the size of the whole data set, and the rank's rows as subsample="
        )

# SPDX-License-Identifier: MIT
"""The rows of a group of latents on all ranks of a process group."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from pyro_infovae._arrays.gathering import exchange, gather_rows, world_size
from pyro_infovae.rows import Rows, weights_or_ones


def gather(*parts: Rows) -> tuple[Rows, ...]:
    """The rows of all ranks, as those of one minibatch that holds the data of all.

    Every rank has to call this alike. With no process group, or one rank, the rows are as given.

    Args:
        *parts: rows of this rank.

    Returns:
        The gathered rows, with the gradient of :func:`~pyro_infovae._arrays.gathering.gather_rows`.

    Raises:
        ValueError: on every rank, where the ranks differ in the number of their rows or in
            anything else but their values, or where a minibatch holds its whole data set.
    """
    if world_size() == 1:
        return parts
    layouts = exchange([_Layout.of(part) for part in parts])
    for ranks in zip(*layouts, strict=True):
        _check(ranks)
    weighted = [any(layout.weighted for layout in ranks) for ranks in zip(*layouts, strict=True)]
    return tuple(_gather(part, w) for part, w in zip(parts, weighted, strict=True))


class _Layout(NamedTuple):
    """What the ranks have to agree on, but for ``weighted``."""

    rows: int
    tensors: dict[str, tuple[tuple[int, ...], str]]
    num_data: int | None
    total: int
    weighted: bool

    @classmethod
    def of(cls, part: Rows) -> _Layout:
        tensors = {
            name: (tuple(tensor.shape[1:]), str(tensor.dtype))
            for name, tensor in (*part.latents.items(), *part.data.items())
        }
        return cls(len(part.values), tensors, part.num_data, part.total, part.weights is not None)


def _check(ranks: tuple[_Layout, ...]) -> None:
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
    if first.num_data == first.total:
        raise ValueError(
            f"Expected each of {len(ranks)} ranks to hold a part of the data of {names}; got "
            f"plates whose {first.total} data are all in the rank's minibatch: pass pyro.plate "
            "the size of the whole data set, and the rank's rows as subsample="
        )


def _gather(part: Rows, weighted: bool) -> Rows:
    num_data = part.num_data
    collect = partial(gather_rows, num_data=num_data or len(part.values))
    return Rows(
        latents={name: collect(values) for name, values in part.latents.items()},
        weights=collect(weights_or_ones(part)) if weighted else None,
        num_data=None if num_data is None else world_size() * num_data,
        total=part.total,
        data={name: collect(values) for name, values in part.data.items()},
    )

# SPDX-License-Identifier: MIT
"""Data and their codes, in batches that a critic is trained and evaluated on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Shaped

from numpyro_backend._diagnostics.data_runs import counts_of
from numpyro_backend._traces.critic_data import DataSource, critic_data
from numpyro_backend._traces.fresh_draws import FreshDraws, datum_of_rows

_MAX_RUNS = 100


class CodedRows(NamedTuple):
    """Data of a run, their codes, which of the data set they are, and whether they count."""

    x: Shaped[Array, " rows *event"]
    z: Float[Array, "rows features"]
    datum: Int[Array, " rows"]
    counts: Bool[Array, " rows"]


class CodedBatch(NamedTuple):
    """Some rows of a run, filled up with copies of weight 0 to a number that is always the same."""

    x: Shaped[Array, " batch *event"]
    z: Float[Array, "batch features"]
    datum: Int[Array, " batch"]
    weights: Float[Array, " batch"]


def draw_rows(
    draws: FreshDraws, data: DataSource, params: Mapping[str, Any], rng_key: Key[Array, ""]
) -> CodedRows:
    """The rows of one run.

    Args:
        draws: the model and the guide.
        data: what the critic sees.
        params: the values of parameters and mutable sites, by name.
        rng_key: the key to draw with.
    """
    group = draws.draw(rng_key, params).group
    rows = group.posterior
    x = critic_data(data, group, asker=draws.asker)
    return CodedRows(x, rows.values, datum_of_rows(group), counts_of(rows))


@dataclass(frozen=True)
class DataPart:
    """A part of the data, to draw codes of.

    Attributes:
        asker: who needs them, for messages.
        draw: a run's rows for a key.
        kept: whether a datum belongs to the part.
        rng: chooses keys and orders, in NumPy, for JAX would compile those of every length.
    """

    asker: str
    draw: Callable[[Key[Array, ""]], CodedRows]
    kept: Bool[np.ndarray, " data"]
    rng: np.random.Generator

    def draw_kept(self) -> CodedRows:
        """The rows of a run that are of this part, and are not masked: 2 at least.

        Raises:
            ValueError: for fewer in every run.
        """
        rows, index = self._draw()
        return jax.tree.map(lambda part: np.asarray(part)[index], rows)

    def batches(self, batch_size: int) -> Iterator[CodedBatch]:
        """Rows in random order, drawn afresh when they are used up."""
        while True:
            rows, kept = self._draw()
            size = min(batch_size, len(rows.z))
            order = self.rng.permutation(kept)
            for index in np.array_split(order, math.ceil(len(order) / size)):
                if len(index) > 1:
                    filled = np.pad(index, (0, size - len(index)), mode="edge")
                    yield _take(rows, filled, np.arange(size) < len(index))

    def _draw(self) -> tuple[CodedRows, Int[np.ndarray, " kept"]]:
        """The rows of a run, which may draw a minibatch without any, that has 2 at least."""
        for _ in range(_MAX_RUNS):
            rows = self.draw(jax.random.key(self.rng.integers(2**32)))
            kept = np.flatnonzero(self.kept[np.asarray(rows.datum)] & np.asarray(rows.counts))
            if len(kept) > 1:
                return rows, kept
        raise ValueError(
            f"{self.asker} takes at least 2 rows of each run to train the critic on, and 2 to "
            f"evaluate it on; got {len(kept)}: use more data, or a larger minibatch"
        )


@jax.jit
def _take(
    rows: CodedRows, index: Int[Array, " batch"], counts: Bool[Array, " batch"]
) -> CodedBatch:
    x, z, datum, _ = (part[index] for part in rows)
    return CodedBatch(x, z, datum, counts.astype(z.dtype))

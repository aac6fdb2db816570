# SPDX-License-Identifier: MIT
"""Data drawn from a model, and programs' arguments that hold them in the place of the user's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jaxtyping import Int, Key, Shaped
from numpyro import handlers

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._traces.recording import Record
from numpyro_backend._traces.runs import Program
from numpyro_backend.sites import Sites

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
DataArguments: TypeAlias = Callable[[dict[str, Array]], Arguments]


class Simulation(NamedTuple):
    """A run of a model that draws its data, too.

    Attributes:
        sites: its sample sites.
        minibatch: the choice of rows in its subsampled plates.
        arguments: the arguments of the programs, with the data that were drawn.
    """

    sites: Sites
    minibatch: dict[str, Int[Array, " rows"]]
    arguments: Arguments


@dataclass(frozen=True, eq=False)
class Simulator:
    r"""Draws latents and data, :math:`(z, x) \sim p(z) \, p(x \mid z)`.

    Attributes:
        model: the model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        data_args: makes the arguments from the data drawn, by site name; None for those of which
            some leaves are replaced.
        places: the data that a leaf of the arguments holds, by its number.
    """

    model: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data_args: DataArguments | None
    places: dict[int, _Place]

    @classmethod
    def of(
        cls,
        asker: str,
        rng_key: Key[Array, ""],
        params: Mapping[str, Any],
        model: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        data_args: DataArguments | None,
    ) -> Simulator:
        """Find out where the arguments hold the data, by a run of the model.

        Args:
            asker: who needs the draws, for messages.
            rng_key: the key to draw with.
            params: the values of parameters and mutable sites, by name.
            model: the model.
            args: its positional arguments.
            kwargs: its keyword arguments.
            data_args: makes the arguments from the data drawn, by site name. By default each array
                in the arguments that equals what a site observes is replaced by what was drawn
                there.

        Raises:
            ValueError: for a model that observes nothing, holds a factor, or observes what is none
                of the arguments.
        """

        @shared_jit
        def run(
            rng_key: Key[Array, ""], params: Mapping[str, Any]
        ) -> tuple[Sites, dict[str, _DrawnData]]:
            record, data = _run(rng_key, params, model, args, kwargs)
            return record.sites, data

        sites, data = jax.device_get(run(rng_key, params))
        _check(asker, sites, data)
        leaves = jax.tree.leaves((args, kwargs))
        places = {} if data_args is not None else _places(data, leaves, asker)
        return cls(model, args, kwargs, data_args, places)

    def draw(self, rng_key: Key[Array, ""], params: Mapping[str, Any]) -> Simulation:
        """Draw once.

        Args:
            rng_key: the key to draw with.
            params: the values of parameters and mutable sites, by name.
        """
        record, data = _run(rng_key, params, self.model, self.args, self.kwargs)
        if self.data_args is not None:
            arguments = self.data_args({name: drawn.drawn for name, drawn in data.items()})
        else:
            leaves, structure = jax.tree.flatten((self.args, self.kwargs))
            for number, (name, dim) in self.places.items():
                leaves[number] = data[name].put_into(leaves[number], dim)
            arguments = jax.tree.unflatten(structure, leaves)
        return Simulation(record.sites, record.indices, arguments)


class _Place(NamedTuple):
    """The site whose data an array holds, and the dim of its rows if it holds those of all data."""

    site: str
    dim: int | None


class _DrawnData(NamedTuple):
    """What a site observes, and what was drawn in its place.

    Attributes:
        observed: the user's data.
        drawn: data of the same shape.
        rows: which data they are, by the dim of a subsampled plate.
    """

    observed: Shaped[Array, ...]
    drawn: Shaped[Array, ...]
    rows: dict[int, Int[Array, " batch"]]

    def place_in(self, name: str, leaf: Any) -> _Place | None:
        """Where an argument holds the data of the site, or None where it does not."""
        if not isinstance(leaf, jax.Array | np.ndarray) or not _is_numeric(leaf.dtype):
            return None
        argument, observed = np.asarray(jnp.asarray(leaf)), np.asarray(self.observed)
        if argument.size == self.drawn.size and _are_equal(argument.ravel(), observed.ravel()):
            return _Place(name, None)
        for dim, rows in self.rows.items():
            holds_rows = argument.ndim == self.drawn.ndim and argument.shape[dim] > rows.max()
            if holds_rows and _are_equal(argument.take(rows, dim), observed):
                return _Place(name, dim)
        return None

    def put_into(self, leaf: Shaped[Array, ...], dim: int | None) -> Shaped[Array, ...]:
        """The argument with the data drawn."""
        argument = jnp.asarray(leaf)
        drawn = self.drawn.astype(argument.dtype)
        if dim is None:
            return drawn.reshape(argument.shape)
        return argument.at[(slice(None),) * dim + (self.rows[dim],)].set(drawn)


def _run(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Record, dict[str, _DrawnData]]:
    """A run of the model that draws what it observes."""
    record = Record()
    with (
        numpyro.validation_enabled(False),
        handlers.seed(rng_seed=rng_key),
        handlers.substitute(data=dict(params)),
        record,
    ):
        trace = handlers.trace(handlers.uncondition(model)).get_trace(*args, **kwargs)
    # An OrderedDict, for JAX sorts the keys of any other.
    data = OrderedDict(
        (name, _DrawnData(jnp.asarray(msg["infer"]["obs"]), msg["value"], _rows(name, record)))
        for name, msg in trace.items()
        if msg["type"] == "sample" and msg["infer"].get("was_observed")
    )
    return record, data


def _rows(name: str, record: Record) -> dict[int, Int[Array, " batch"]]:
    site = record.sites[name]
    num_batch_dims = site.value.ndim - site.event_dim
    return {
        num_batch_dims + plate.dim: record.indices[plate.name]
        for plate in site.plates
        if plate.name in record.indices
    }


def _check(asker: str, sites: Sites, data: Mapping[str, _DrawnData]) -> None:
    for name in data:
        if sites[name].kind == "Unit":
            raise ValueError(
                f"{asker}: the model holds the factor '{name}', so that nothing can be drawn from "
                "it: leave the factor out"
            )
    if not data:
        raise ValueError(
            f"{asker}: the model observes nothing, so that there are no data to draw: observe "
            "them by obs="
        )


def _places(data: Mapping[str, _DrawnData], leaves: list[Any], asker: str) -> dict[int, _Place]:
    places: dict[int, _Place] = {}
    for name, drawn in data.items():
        found = {
            number: place
            for number, leaf in enumerate(leaves)
            if number not in places and (place := drawn.place_in(name, leaf)) is not None
        }
        if not found:
            raise ValueError(
                f"{asker}: what the site '{name}' observes is none of the arguments: pass "
                f"data_args, a function of {{'{name}': array}} to (args, kwargs) that hold it"
            )
        places |= found
    return places


def _is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _are_equal(x: Shaped[np.ndarray, ...], y: Shaped[np.ndarray, ...]) -> bool:
    return np.array_equal(x, y, equal_nan=True)

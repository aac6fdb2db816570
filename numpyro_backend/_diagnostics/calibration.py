# SPDX-License-Identifier: MIT
"""Is the guide's posterior as wide as it should be, and in the right place?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jaxtyping import Bool, Int, Key, Shaped
from numpyro import handlers

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._traces.fresh_draws import FreshDraws, set_up
from numpyro_backend._traces.recording import Record
from pyro_infovae._core import calibration
from pyro_infovae._core.calibration import (
    Calibration,
    Observed,
    Place,
    check_simulation,
    find_places,
)
from pyro_infovae._core.data_runs import check_finite, feature_names
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program
from pyro_infovae._core.progress import with_progress
from pyro_infovae._core.rows import Rows, rows_of
from pyro_infovae._core.sites import Sites

_CALLER = "simulation_based_calibration"


@documented(
    calibration.SIMULATION_BASED_CALIBRATION, rebuilt="; it is run under\n        :func:`jax.jit`"
)
def simulation_based_calibration(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_simulations: int = 10,
    num_samples: int = 99,
    data_args: DataArguments | None = None,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> Calibration[np.ndarray]:
    """Rank latents among the guide's draws, on data that the model draws from them.

    Example:
        $programs
        >>> x = jnp.zeros(100)
        >>> calibration = simulation_based_calibration(key, {}, model, lambda x: guide(x + 1.0), x)
        >>> calibration.ranks.shape
        (1000, 1)
        >>> calibration.p_values[0] < 1e-6  # the guide is off to a side
        True
    """
    calibration.check_calibration(num_simulations, num_samples)
    first_key, runs_key = jax.random.split(rng_key)
    set_up(first_key, guide, args, kwargs)
    simulator = _Simulator.of(_CALLER, first_key, params, model, args, kwargs, data_args)
    rank = shared_jit(partial(_ranks, simulator, guide, sites, num_samples))
    keys = jax.random.split(runs_key, num_simulations)
    simulations = with_progress(keys, total=num_simulations, label="calibration")
    ranked = [_counted(rank(key, params)) for key in simulations]
    ranks, dimensions = zip(*ranked, strict=True)
    return Calibration(np.concatenate(ranks), num_samples, dimensions[0])


class _Ranked(NamedTuple):
    """The latents of a simulation, their ranks, and whether all of the guide's draws are finite."""

    latents: Rows
    ranks: Int[Array, "rows dims"]
    is_finite: Bool[Array, "rows dims"]


def _ranks(
    simulator: _Simulator,
    guide: Program,
    sites: Iterable[str] | None,
    num_samples: int,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
) -> _Ranked:
    simulation_key, guide_key = jax.random.split(rng_key)
    simulation = simulator.draw(simulation_key, params)
    given = {**params, **simulation.minibatch}
    draws = FreshDraws(_CALLER, simulator.model, guide, *simulation.arguments, sites)
    first = draws.draw(guide_key, given)
    latents = rows_of(first.group.names, simulation.sites, first.run)

    def count(ranked: _Ranked, rng_key: Key[Array, ""]) -> tuple[_Ranked, None]:
        codes = draws.draw(rng_key, given).group.posterior.values
        ranks = ranked.ranks + (codes < latents.values)
        return _Ranked(latents, ranks, ranked.is_finite & jnp.isfinite(codes)), None

    start = _Ranked(
        latents, jnp.zeros(latents.values.shape, int), jnp.ones(latents.values.shape, bool)
    )
    ranked, _ = jax.lax.scan(count, start, jax.random.split(guide_key, num_samples))
    return ranked


def _counted(ranked: _Ranked) -> tuple[Int[np.ndarray, "data dims"], tuple[str, ...]]:
    """The ranks of the latents that are not masked, and their dimensions' names."""
    dimensions = feature_names(ranked.latents.latents)
    counted = np.asarray(ranked.latents.dense_weights > 0)
    for is_finite, source in (
        (jnp.isfinite(ranked.latents.values), "model draws"),
        (ranked.is_finite, "guide draws"),
    ):
        check_finite(np.asarray(is_finite)[counted], dimensions, caller=_CALLER, source=source)
    return np.asarray(ranked.ranks)[counted], dimensions


Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
DataArguments: TypeAlias = Callable[[dict[str, Array]], Arguments]


class _Simulation(NamedTuple):
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
class _Simulator:
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
    places: dict[int, Place]

    @classmethod
    def of(
        cls,
        caller: str,
        rng_key: Key[Array, ""],
        params: Mapping[str, Any],
        model: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        data_args: DataArguments | None,
    ) -> _Simulator:
        """Find out where the arguments hold the data, by a run of the model.

        Args:
            caller: who needs the draws, for messages.
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
        check_simulation(caller, [name for name in data if sites[name].kind == "Unit"], data)
        if data_args is not None:
            return cls(model, args, kwargs, data_args, {})
        observed = {name: Observed(d.observed, d.drawn.shape, d.rows) for name, d in data.items()}
        leaves = [_numbers(leaf) for leaf in jax.tree.leaves((args, kwargs))]
        places = find_places(caller, "array", observed, leaves)
        return cls(model, args, kwargs, data_args, places)

    def draw(self, rng_key: Key[Array, ""], params: Mapping[str, Any]) -> _Simulation:
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
        return _Simulation(record.sites, record.indices, arguments)


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


def _numbers(leaf: Any) -> Shaped[np.ndarray, ...] | None:
    """An argument as NumPy's array, in the precision that JAX gives it; None if it is none."""
    is_array = isinstance(leaf, jax.Array | np.ndarray)
    if not is_array or not (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)):
        return None
    return np.asarray(jnp.asarray(leaf))

# SPDX-License-Identifier: MIT
"""Draws for diagnostics: runs of guide and model that nothing learns from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jaxtyping import Float, Int, Key
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger

from numpyro_backend._traces.critic_data import only_group
from numpyro_backend._traces.recording import Message, Recorder
from numpyro_backend.groups import Group
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import Rows, Selection, groups_of
from pyro_infovae._core.sites import Run

Trace: TypeAlias = Mapping[str, Message]
Minibatch: TypeAlias = Mapping[str, Int[Array, " data"]]


def set_up(
    rng_key: Key[Array, ""], guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Let a new AutoGuide look at its model: what it sees it keeps, so it must not be traced."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        handlers.seed(guide, rng_key)(*args, **kwargs)


def numpy_generator(rng_key: Key[Array, ""]) -> np.random.Generator:
    """A generator of random numbers for NumPy, which a key determines."""
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


def draw_traces(
    rng_key: Key[Array, ""],
    given: Mapping[str, Any],
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, Trace]:
    """A run of the guide, and one of the model with its draws.

    Args:
        rng_key: the key to draw with.
        given: the values of parameters, mutable sites and minibatches, by name.
        model: the model.
        guide: the guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """
    model_key, guide_key = jax.random.split(rng_key)
    with handlers.seed(rng_seed=guide_key), handlers.substitute(data=given):
        guide_trace = handlers.trace(guide).get_trace(*args, **kwargs)
    with handlers.seed(rng_seed=model_key), handlers.substitute(data=given):
        replayed = handlers.trace(handlers.replay(model, trace=guide_trace))
        return guide_trace, replayed.get_trace(*args, **kwargs)


def log_prob(site: Message) -> Float[Array, " *batch"]:
    """The log density of a site's value, without its scale."""
    # Some transforms have no inverse, but have kept what went in.
    kept = (site["intermediates"],) if site["intermediates"] else ()
    return site["fn"].log_prob(site["value"], *kept)


class Draw(NamedTuple):
    """The latents of one run in a group of one particle, the run, and all messages of it."""

    group: Group
    run: Run
    guide: Trace
    model: Trace


class Outline(NamedTuple):
    """What is known of a run, and of its rows, before there are values: plates, shapes, names."""

    run: Run
    rows: Rows

    @property
    def names(self) -> tuple[str, ...]:
        """The latents, in the order of the model."""
        return tuple(self.rows.latents)


@dataclass(frozen=True)
class FreshDraws:
    """A model and a guide to draw from.

    Attributes:
        caller: who needs the draws, for messages.
        model: the model.
        guide: the guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        sites: the latents, by name, or None for every reparameterised one in plates.
    """

    caller: str
    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sites: Iterable[str] | None

    def draw(
        self,
        rng_key: Key[Array, ""],
        params: Mapping[str, Any],
        minibatch: Minibatch | None = None,
    ) -> Draw:
        """The latents of one run, and what goes with them.

        Args:
            rng_key: the key to draw with.
            params: the values of parameters and mutable sites, by name.
            minibatch: by subsampled plate, the data to draw for, as many as it subsamples; by
                default a random choice.

        Raises:
            ValueError: for latents that cannot be selected, or are in several stacks of plates.
        """
        recorder = Recorder(Selection.of(self.caller, self.sites))
        programs = recorder.model(self.model), recorder.guide(self.guide)
        run_key, prior_key = jax.random.split(rng_key)
        chosen_rows = _ChosenRows(minibatch or {}, self.caller)
        with recorder.scoring(), chosen_rows, numpyro.validation_enabled(False):
            guide, model = draw_traces(run_key, params, *programs, self.args, self.kwargs)
        run = recorder.run(self)
        runs = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], run)
        groups = [
            Group(group, runs, prior_key, dict(params), self.model, self.args, self.kwargs)
            for group in groups_of(run)
        ]
        return Draw(only_group(groups, caller=self.caller), run, guide, model)

    def outline(self, rng_key: Key[Array, ""], params: Mapping[str, Any]) -> Outline:
        """What is known of every run without running anything.

        Raises:
            ValueError: for latents that cannot be selected, or are in several stacks of plates.
        """

        def outline(rng_key: Key[Array, ""]) -> Outline:
            draw = self.draw(rng_key, params)
            return Outline(draw.run, draw.group.posterior)

        return jax.eval_shape(outline, rng_key)


class _ChosenRows(Messenger):
    """Chooses the data of subsampled plates."""

    def __init__(self, rows: Minibatch, caller: str) -> None:
        super().__init__()
        self.rows = rows
        self.caller = caller

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "plate" or msg["name"] not in self.rows:
            return
        rows = self.rows[msg["name"]]
        if msg["value"] is not None and msg["value"] is not rows:
            raise ValueError(
                f"{self.caller} needs all data, and plate '{msg['name']}' is given some of them by "
                "handlers.substitute: leave it to draw a subsample_size alone"
            )
        msg["value"] = rows


def datum_of_rows(group: Group) -> Int[Array, " rows"]:
    """Which datum of the data set each row of a single draw belongs to."""
    datum = jnp.zeros(1, int)
    for plate in group.plates:
        indices = group.runs.indices.get(plate.name)
        index = jnp.arange(plate.size) if indices is None else indices[0]
        datum = (datum[:, None] * plate.full_size + index).reshape(-1)
    return datum

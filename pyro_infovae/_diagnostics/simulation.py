# SPDX-License-Identifier: MIT
"""Data drawn from a model, and programs' arguments that hold them in the place of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_infovae._traces.runs import Program
from pyro_infovae.sites import Messages, data_size, is_data, row_plates

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
DataArguments: TypeAlias = Callable[[dict[str, Tensor]], Arguments]


@dataclass(frozen=True, eq=False)
class Simulation:
    """A run of a model that draws its data, too.

    Attributes:
        messages: the messages of its sample sites.
        minibatch: the choice of rows in its plates.
        arguments: the arguments of the programs, with the data that were drawn.
    """

    messages: Messages
    minibatch: Trace
    arguments: Arguments


def simulate(
    asker: str,
    model: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    data_args: DataArguments | None,
) -> Simulation:
    r"""Draw latents and data, :math:`(z, x) \sim p(z) \, p(x \mid z)`.

    Args:
        asker: who needs them, for messages.
        model: the model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        data_args: makes the arguments from the data drawn, by site name. By default each argument
            that is what a site observes, or equals it, is replaced by what was drawn there.

    Raises:
        ValueError: for a model that observes nothing, holds a factor, or observes what is none of
            the arguments.
    """
    unobserved = _Unobserved()
    with unobserved:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    messages = {name: msg for name, msg in trace.nodes.items() if msg["type"] == "sample"}
    for name, msg in messages.items():
        if site_is_factor(msg):
            raise ValueError(
                f"{asker}: the model holds the factor '{name}', so that nothing can be drawn from "
                "it: leave the factor out"
            )
    if not unobserved.data:
        raise ValueError(
            f"{asker}: the model observes nothing, so that there are no data to draw: observe "
            "them by obs="
        )
    if data_args is None:
        data = {
            name: _DrawnData(
                torch.as_tensor(observed), messages[name]["value"], _rows(name, messages)
            )
            for name, observed in unobserved.data.items()
        }
        arguments = _with_data(data, args, kwargs, asker)
    else:
        arguments = data_args({name: messages[name]["value"] for name in unobserved.data})
    return Simulation(messages, _minibatch(messages), arguments)


class _Unobserved(Messenger):
    """Draws what a model observes, and keeps what that was."""

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}

    def _pyro_sample(self, msg: Message) -> None:
        # Not poutine.uncondition: it would draw deterministic sites and factors, too.
        if is_data(msg):
            self.data[msg["name"]] = msg["value"]
            msg["is_observed"] = False
            msg["value"] = None
            msg["done"] = False


def _minibatch(messages: Messages) -> Trace:
    kept = Trace()
    for name, msg in messages.items():
        if site_is_subsample(msg):
            kept.add_node(name, **msg)
    return kept


@dataclass(frozen=True, eq=False)
class _DrawnData:
    """What a site observes, and what was drawn in its place.

    Attributes:
        observed: the user's data.
        drawn: data of the same shape.
        rows: which data they are, by the dim of a subsampled plate.
    """

    observed: Tensor
    drawn: Tensor
    rows: dict[int, Int[Tensor, " batch"]]

    def put_into(self, argument: Any) -> Tensor | None:
        """The argument with the data drawn, or None where it does not hold those observed."""
        if not isinstance(argument, Tensor):
            return None
        if argument is self.observed or _are_equal(argument.flatten(), self.observed.flatten()):
            return self.drawn.to(argument).reshape(argument.shape)
        for dim, rows in self.rows.items():
            if self._is_minibatch_of(argument, dim, rows):
                rows = rows.to(argument.device)
                return argument.index_copy(dim, rows, self.drawn.to(argument))
        return None

    def _is_minibatch_of(self, argument: Tensor, dim: int, rows: Int[Tensor, " batch"]) -> bool:
        holds_rows = argument.dim() == self.observed.dim() and argument.shape[dim] > int(rows.max())
        return holds_rows and _are_equal(
            argument.index_select(dim, rows.to(argument.device)), self.observed
        )


def _with_data(
    data: dict[str, _DrawnData], args: tuple[Any, ...], kwargs: dict[str, Any], asker: str
) -> Arguments:
    for name, drawn in data.items():
        new_args = [drawn.put_into(argument) for argument in args]
        new_kwargs = {key: drawn.put_into(argument) for key, argument in kwargs.items()}
        if all(new is None for new in (*new_args, *new_kwargs.values())):
            raise ValueError(
                f"{asker}: what the site '{name}' observes is none of the arguments: pass "
                f"data_args, a function of {{'{name}': tensor}} to (args, kwargs) that hold it"
            )
        args = tuple(old if new is None else new for old, new in zip(args, new_args, strict=True))
        kwargs = {key: kwargs[key] if new is None else new for key, new in new_kwargs.items()}
    return args, kwargs


def _rows(name: str, messages: Messages) -> dict[int, Int[Tensor, " batch"]]:
    msg = messages[name]
    num_batch_dims = msg["value"].dim() - msg["fn"].event_dim
    return {
        num_batch_dims + frame.dim: messages[frame.name]["value"]
        for frame in row_plates(msg)
        if data_size([frame]) != frame.size
    }


def _are_equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool((x == y.to(x.device)).all())

# SPDX-License-Identifier: MIT
"""Is the guide's posterior as wide as it should be, and in the right place?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
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

from pyro_infovae._core import calibration
from pyro_infovae._core.calibration import Calibration, Observed, find_places
from pyro_infovae._core.data_runs import check_finite, feature_names
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program
from pyro_infovae._core.progress import with_progress
from pyro_infovae._core.rows import rows_of
from pyro_infovae._diagnostics.data_runs import to_numpy
from pyro_infovae._traces.fresh_draws import FreshDraws, parameters_untouched
from pyro_infovae._traces.recording import Messages, is_data, site_of

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
DataArguments: TypeAlias = Callable[[dict[str, Tensor]], Arguments]

_CALLER = "simulation_based_calibration"


@documented(calibration.SIMULATION_BASED_CALIBRATION, rebuilt="")
def simulation_based_calibration(
    model: Program,
    guide: Program,
    *args: Any,
    num_simulations: int = 10,
    num_samples: int = 99,
    data_args: DataArguments | None = None,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> Calibration[Tensor]:
    """Rank latents among the guide's draws, on data that the model draws from them.

    Example:
        $programs
        >>> x = torch.zeros(100)
        >>> calibration = simulation_based_calibration(model, lambda x: guide(x + 1.0), x)
        >>> calibration.ranks.shape
        torch.Size([1000, 1])
        >>> calibration.p_values[0] < 1e-6  # the guide is off to a side
        True
    """
    calibration.check_calibration(num_simulations, num_samples)
    simulations = with_progress(range(num_simulations), total=num_simulations, label="calibration")
    with parameters_untouched():
        ranked = [
            _ranks(_simulate(model, args, kwargs, data_args), model, guide, sites, num_samples)
            for _ in simulations
        ]
    ranks, dimensions = zip(*ranked, strict=True)
    return Calibration(torch.cat(ranks), num_samples, dimensions[0])


def _ranks(
    simulation: _Simulation,
    model: Program,
    guide: Program,
    sites: Iterable[str] | None,
    num_samples: int,
) -> tuple[Int[Tensor, "data dims"], tuple[str, ...]]:
    """The ranks of one simulation's latents that are not masked, and their dimensions' names."""
    same_minibatch = poutine.replay(guide, trace=simulation.minibatch)
    draws = FreshDraws(_CALLER, model, same_minibatch, *simulation.arguments, sites)
    group = draws.draw()
    (run,) = group.runs
    counted = group.posterior.dense_weights > 0
    dimensions = feature_names(group.posterior.latents)
    drawn = OrderedDict((n, site_of(simulation.messages[n])) for n in group.names)
    latents = rows_of(group.names, drawn, run).values[counted]
    _check_finite(latents, dimensions, "model draws")
    ranks = torch.zeros_like(latents, dtype=torch.long)
    for _ in range(num_samples):
        codes = draws.draw().posterior.values[counted]
        _check_finite(codes, dimensions, "guide draws")
        ranks += codes < latents
    return ranks, dimensions


def _check_finite(codes: Tensor, dimensions: tuple[str, ...], source: str) -> None:
    is_finite = to_numpy(codes.isfinite())
    check_finite(is_finite, dimensions, caller=_CALLER, source=source)


@dataclass(frozen=True, eq=False)
class _Simulation:
    """A run of a model that draws its data, too.

    Attributes:
        messages: the messages of its sample sites.
        minibatch: the choice of rows in its plates.
        arguments: the arguments of the programs, with the data that were drawn.
    """

    messages: Messages
    minibatch: Trace
    arguments: Arguments


def _simulate(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], data_args: DataArguments | None
) -> _Simulation:
    r"""Draw latents and data, :math:`(z, x) \sim p(z) \, p(x \mid z)`.

    Raises:
        ValueError: for a model that observes nothing, holds a factor, or observes what is none of
            the arguments.
    """
    unobserved = _Unobserved()
    with unobserved:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    messages = {name: msg for name, msg in trace.nodes.items() if msg["type"] == "sample"}
    factors = [name for name, msg in messages.items() if site_is_factor(msg)]
    calibration.check_simulation(_CALLER, factors, unobserved.data)
    drawn = {name: messages[name]["value"] for name in unobserved.data}
    minibatch = Trace()
    for name, msg in messages.items():
        if site_is_subsample(msg):
            minibatch.add_node(name, **msg)
    if data_args is not None:
        return _Simulation(messages, minibatch, data_args(drawn))
    rows = {name: _rows(name, messages) for name in drawn}
    observed = {
        name: Observed(
            to_numpy(torch.as_tensor(data)),
            tuple(drawn[name].shape),
            {dim: to_numpy(index) for dim, index in rows[name].items()},
        )
        for name, data in unobserved.data.items()
    }
    values = [*args, *kwargs.values()]
    arrays = [to_numpy(value) if isinstance(value, Tensor) else None for value in values]
    for number, (name, dim) in find_places(_CALLER, "tensor", observed, arrays).items():
        held, data = values[number], drawn[name].to(values[number])
        values[number] = (
            data.reshape(held.shape)
            if dim is None
            else held.index_copy(dim, rows[name][dim].to(held.device), data)
        )
    arguments = tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))
    return _Simulation(messages, minibatch, arguments)


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


def _rows(name: str, messages: Messages) -> dict[int, Int[Tensor, " batch"]]:
    msg = messages[name]
    num_batch_dims = msg["value"].dim() - msg["fn"].event_dim
    return {
        num_batch_dims + frame.dim: messages[frame.name]["value"]
        for frame in site_of(msg).plates
        if frame.full_size != frame.size
    }

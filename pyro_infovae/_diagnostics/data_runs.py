# SPDX-License-Identifier: MIT
"""Runs of guide and model that go over all data, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_infovae._core.data_runs import (
    DataRuns,
    Quantity,
    check_all_drawn,
    check_density,
    feature_names,
    first_of_each,
)
from pyro_infovae._core.data_runs import minibatches as _minibatches
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import Run, Site
from pyro_infovae._traces.fresh_draws import FreshDraws, Minibatch, datum_of_rows
from pyro_infovae.groups import Group


def run_over_data(
    caller: str,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sites: Iterable[str] | None,
) -> DataRuns:
    """Find out about plates and masks by a run over all data.

    Raises:
        ValueError: for latents that cannot be selected, or are in several stacks of plates; for
            several subsampled plates; for fewer than 2 data that count; for codes that are not
            finite.
    """
    draws = FreshDraws(caller, model, guide, args, dict(kwargs), sites)
    first = draws.draw()
    parts = minibatches(caller, first)

    def run(quantity: Quantity) -> Callable[[Any], list[Any]]:
        return lambda _: [to_numpy(quantity(draws.draw(part))) for part in parts]

    datum, counts, codes = map(np.concatenate, zip(*run(_look)(None), strict=True))
    kept = first_of_each(datum, counts)
    device = first.posterior.values.device
    runs = DataRuns(
        caller,
        run,
        array=lambda values: torch.as_tensor(values, device=device),
        first=first,
        num_data=first.posterior.num_data,
        kept=kept,
        datum=datum[kept],
        features=feature_names(first.posterior.latents),
    )
    runs.check_finite(codes[kept], "guide draws")
    return runs


def to_numpy(values: Tensor | tuple[Tensor, ...]) -> Any:
    """A tensor, or several, as NumPy arrays."""
    if isinstance(values, tuple):
        return tuple(map(to_numpy, values))
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def numpy_generator() -> np.random.Generator:
    """A generator of random numbers for NumPy, which PyTorch's random state determines."""
    return np.random.default_rng(int(torch.randint(2**31, ())))


def codes(group: Group) -> tuple[Tensor, Tensor]:
    """A code of each datum from the guide, and one drawn afresh from the model."""
    return group.posterior.values, group.prior(1).values


def minibatches(caller: str, group: Group) -> list[Minibatch | None]:
    """Minibatches that cover the data; a single None where no plate is subsampled."""
    plates = [(plate.name, plate.size, plate.full_size) for plate in group.plates]
    return [
        Minibatch(name, torch.as_tensor(rows), caller=caller)
        for part in _minibatches(caller, plates)
        for name, rows in part.items()
    ] or [None]


def check_densities(caller: str, group: Group) -> None:
    """Refuse latents whose density in guide and prior is not known row by row.

    Raises:
        ValueError: naming the site.
    """
    (run,) = group.runs
    check_all_drawn(caller, run, group.names)
    for name in group.names:
        check_density(caller, name, source_of(name, run))


def source_of(name: str, run: Run) -> Site:
    """The site that a latent's density in the guide sits in."""
    return run.guide.get(f"{name}_unconstrained", run.guide[name])


def _look(group: Group) -> tuple[Tensor, Tensor, Tensor]:
    return datum_of_rows(group), group.posterior.dense_weights > 0, group.posterior.values

# SPDX-License-Identifier: MIT
"""Draws for diagnostics: runs of guide and model that nothing learns from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Int
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import Selection, groups_of
from pyro_infovae._traces.critic_data import only_group
from pyro_infovae._traces.recording import Recorder
from pyro_infovae._traces.runs import buffers_untouched
from pyro_infovae.groups import Group


@contextmanager
def parameters_untouched() -> Iterator[None]:
    """No gradients, no argument checks; the param store and buffers are left as they were."""
    store = pyro.get_param_store()
    with (
        torch.no_grad(),
        pyro.validation_enabled(False),
        store.scope(store.get_state()),
        buffers_untouched(),
    ):
        yield


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

    def draw(self, minibatch: Minibatch | None = None) -> Group:
        """The latents of one run, and what goes with them.

        Args:
            minibatch: the data to draw for in a subsampled plate; by default a random choice.

        Raises:
            ValueError: for latents that cannot be selected, or are in several stacks of plates.
        """
        recorder = Recorder(Selection.of(self.caller, self.sites))
        with minibatch or Messenger():
            guide = poutine.trace(recorder.guide(self.guide)).get_trace(*self.args, **self.kwargs)
        poutine.replay(recorder.model(self.model), trace=guide)(*self.args, **self.kwargs)
        (run,) = recorder.last(1)
        groups = [
            Group(group, (run,), self.model, self.args, self.kwargs) for group in groups_of(run)
        ]
        return only_group(groups, caller=self.caller)


class Minibatch(Messenger):
    """Chooses the data of a subsampled plate.

    Args:
        plate: the name of the plate.
        rows: the data, as many as the plate subsamples.
        caller: who chooses, for messages.
    """

    def __init__(self, plate: str, rows: Int[Tensor, " data"], *, caller: str) -> None:
        super().__init__()
        self.plate = plate
        self.rows = rows
        self.caller = caller

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] != self.plate or not site_is_subsample(msg):
            return
        if msg["value"] is not None:
            raise ValueError(
                f"{self.caller} needs all data, and plate '{self.plate}' is given some of them as "
                "subsample=: give it all, or a subsample_size alone"
            )
        msg["value"] = self.rows


def datum_of_rows(group: Group) -> Int[Tensor, " rows"]:
    """Which datum of the data set each row of a single draw belongs to."""
    (run,) = group.runs
    datum = torch.zeros(1, dtype=torch.long)
    for plate in group.plates:
        index = torch.as_tensor(run.indices[plate.name])
        datum = (datum.to(index)[:, None] * plate.full_size + index).flatten()
    return datum

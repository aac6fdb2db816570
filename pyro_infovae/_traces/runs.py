# SPDX-License-Identifier: MIT
"""Runs of the model by itself: latents drawn afresh, given all others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_infovae._core.programs import Program, unrecorded
from pyro_infovae._core.rows import enumerated_shapes
from pyro_infovae._core.sites import Run, Sites
from pyro_infovae._traces.recording import Record


def draw_prior(model: Program, args: Any, kwargs: Any, run: Run, names: Collection[str]) -> Sites:
    r"""Draw the named latents afresh from the model, all other latents as the guide drew them.

    The same minibatch is used, every draw has the batch shape that it has in the scored run,
    enumeration dims included, and the run stops right after the last of the named latents, so that
    the likelihood is not computed.

    Args:
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        run: the run that gives the other latents and the minibatch.
        names: the latents to draw.

    Returns:
        The sample sites up to the last named latent.
    """
    given = dict(run.indices)
    for name, site in run.model.items():
        if name not in names and site.is_latent and name in run.guide:
            given[name] = site.value
    redraw = Record()
    with (
        poutine.block(hide_fn=lambda msg: msg["type"] == "sample"),
        _particle_plate(run),
        _Given(given, enumerated_shapes(run, names)),
        redraw,
        buffers_untouched(),
        leaving_when(lambda: redraw.sites.keys() >= set(names)),
    ):
        unrecorded(model)(*args, **kwargs)
    return redraw.sites


@contextmanager
def buffers_untouched() -> Iterator[None]:
    """Leave the buffers of all modules as they are, for runs beside the one that is scored.

    While they train, layers such as BatchNorm count every run: the modules that run in here get
    copies to write into.
    """
    own: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def lend_copies(module: nn.Module, _: Any) -> None:
        buffers = module._buffers
        if buffers and module.training and id(buffers) not in own:
            own[id(buffers)] = buffers, dict(buffers)
            buffers.update({k: b if b is None else b.clone() for k, b in buffers.items()})

    try:
        with register_module_forward_pre_hook(lend_copies):
            yield
    finally:
        for buffers, held in own.values():
            buffers.update(held)


class _Given(Messenger):
    """Gives the values of some latents, and the batch shapes in which others are drawn."""

    def __init__(self, values: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.values = values
        self.shapes = shapes

    def _pyro_sample(self, msg: Message) -> None:
        name, fn = msg["name"], msg["fn"]
        if name in self.values and not msg["is_observed"]:
            msg["value"] = self.values[name]
            msg["done"] = True
        elif name in self.shapes:
            shape = torch.broadcast_shapes(fn.batch_shape, self.shapes[name])
            msg["fn"] = fn if shape == fn.batch_shape else fn.expand(shape)


class _Done(BaseException):
    """Leaves a program; no ``except Exception`` of the user's may stop it."""


class _Leave(Messenger):
    def __init__(self, is_done: Callable[[], bool]) -> None:
        super().__init__()
        self.is_done = is_done

    def _pyro_post_sample(self, msg: Message) -> None:
        if self.is_done():
            raise _Done


@contextmanager
def leaving_when(is_done: Callable[[], bool]) -> Iterator[None]:
    """Run a program only up to the sample site after which ``is_done()``."""
    try:
        with _Leave(is_done):
            yield
    except _Done:
        pass


def _particle_plate(run: Run) -> Any:
    plate = run.particle_plate
    if plate is None:
        return nullcontext()
    return pyro.plate(plate.name, plate.size, dim=plate.dim)

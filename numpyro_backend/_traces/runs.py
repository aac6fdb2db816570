# SPDX-License-Identifier: MIT
"""Runs of the model by itself: latents drawn afresh, given all others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jax import Array, lax
from jaxtyping import Key
from numpyro import handlers
from numpyro.primitives import Messenger

from numpyro_backend._traces.recording import Message, Record
from pyro_infovae._core.programs import Program, unrecorded
from pyro_infovae._core.rows import enumerated_shapes
from pyro_infovae._core.sites import Run, Sites


def draw_prior(
    model: Program,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Run,
    names: Collection[str],
) -> Sites:
    r"""Draw the named latents afresh from the model, all other latents as the guide drew them.

    The same minibatch is used, every draw has the batch shape that it has in the scored run,
    enumeration dims included, and the run stops right after the last of the named latents, so that
    the likelihood is not computed.

    Args:
        model: the user's model.
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name.
        args: the model's positional arguments.
        kwargs: its keyword arguments.
        run: the run that gives the other latents and the minibatch.
        names: the latents to draw.

    Returns:
        The sample sites up to the last named latent.
    """
    kept = {
        name: site.value
        for name, site in run.model.items()
        if name not in names and site.is_latent and name in run.guide
    }
    redraw = Record()
    with (
        handlers.seed(rng_seed=rng_key),
        handlers.substitute(data={**params, **run.indices, **kept}),
        _Expanded(enumerated_shapes(run, names)),
        redraw,
        leaving_when(lambda: redraw.sites.keys() >= set(names)),
    ):
        unrecorded(model)(*args, **kwargs)
    return redraw.sites


class _Expanded(Messenger):
    """Draws some latents in given batch shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["name"] in self.shapes:
            fn = msg["fn"]
            shape = lax.broadcast_shapes(fn.batch_shape, self.shapes[msg["name"]])
            msg["fn"] = fn if shape == fn.batch_shape else fn.expand(shape)


class _Done(BaseException):
    """Leaves a program; no ``except Exception`` of the user's may stop it."""


class _Leave(Messenger):
    def __init__(self, is_done: Callable[[], bool]) -> None:
        super().__init__()
        self.is_done = is_done

    def postprocess_message(self, msg: Message) -> None:
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

# SPDX-License-Identifier: MIT
"""Latents that a program marks to be enumerated, below a base that draws them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from numpyro.infer.elbo import ELBO
from numpyro.primitives import Messenger

from numpyro_backend._objectives.objective import Objective
from numpyro_backend._traces.recording import Message
from pyro_infovae._core.objectives import warn_of_enumeration


@contextmanager
def warning_of_enumeration(base: ELBO) -> Iterator[None]:
    """Warn where a base evaluates programs that need one that enumerates."""
    marked = _Marked()
    with marked:
        yield
    # An objective below this one speaks for itself.
    if marked.names and not (base.can_infer_discrete or isinstance(base, Objective)):
        warn_of_enumeration(sorted(marked.names))


class _Marked(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def postprocess_message(self, msg: Message) -> None:
        is_latent = msg["type"] == "sample" and not msg["is_observed"]
        if is_latent and msg["infer"].get("enumerate"):
            self.names.add(msg["name"])

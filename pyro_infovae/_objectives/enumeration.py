# SPDX-License-Identifier: MIT
"""Latents that a program marks to be enumerated, below a base that draws them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.infer import TraceEnum_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from pyro_infovae._core.objectives import warn_of_enumeration
from pyro_infovae._objectives.objective import Objective, TraceAnalyticKL_ELBO


@contextmanager
def warning_of_enumeration(base: ELBO) -> Iterator[None]:
    """Warn where a base evaluates programs that need one that enumerates."""
    marked = _Marked()
    with marked:
        yield
    # An objective below this one speaks for itself.
    is_another = isinstance(base, Objective) and not isinstance(base, TraceAnalyticKL_ELBO)
    if marked.names and not (is_another or isinstance(base, TraceEnum_ELBO)):
        warn_of_enumeration(sorted(marked.names))


class _Marked(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_post_sample(self, msg: Message) -> None:
        if msg["infer"].get("enumerate") and not msg["is_observed"]:
            self.names.add(msg["name"])

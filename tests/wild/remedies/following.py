"""A message of the page of errors, met in a small program, and what it recommends, taken."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import pyro

from tests.questions.asking import Asking
from tests.test_errors_page import LISTED

Action = Callable[[], Any]


class Remedy(NamedTuple):
    """What meets some messages, and what follows them.

    Attributes:
        messages: as the page lists them.
        actions: of a half: the first meets the messages, each other one takes a remedy.
        halves: those that say so.
        quick: the halves in which it takes little time.
    """

    messages: tuple[str, ...]
    actions: Callable[[Asking], Sequence[Action]]
    halves: tuple[str, ...]
    quick: tuple[str, ...]


REMEDIES: dict[str, Remedy] = {}


def follows(
    *parts: str, only: str | None = None, quick: Sequence[str] = ("pyro",)
) -> Callable[[Callable[[Asking], Sequence[Action]]], Callable[[Asking], Sequence[Action]]]:
    """Register how the messages are met that contain the given words.

    Args:
        parts: each of a single message of the page.
        only: the half that alone says so.
        quick: the halves in which it takes little time, beside the only one.
    """

    def register(
        actions: Callable[[Asking], Sequence[Action]],
    ) -> Callable[[Asking], Sequence[Action]]:
        add(actions.__name__, [listed(part) for part in parts], actions, only=only, quick=quick)
        return actions

    return register


def add(
    name: str,
    messages: Sequence[str],
    actions: Callable[[Asking], Sequence[Action]],
    *,
    only: str | None = None,
    quick: Sequence[str] = ("pyro",),
) -> None:
    halves = ("pyro", "numpyro") if only is None else (only,)
    quick = tuple(quick) if only is None or not quick else halves
    if name in REMEDIES:
        raise ValueError(f"Expected another name than {name!r}, which is taken")
    REMEDIES[name] = Remedy(tuple(messages), actions, halves, quick)


def listed(part: str) -> str:
    """The message of the page that contains some words."""
    found = [part] if part in LISTED else [message for message in LISTED if part in message]
    if len(found) != 1:
        raise ValueError(f"Expected a part of one message; got {part!r}, which is in {found}")
    return found[0]


def listed_as(said: str) -> str:
    """The message of the page whose blanks an error has filled."""
    found = [message for message in LISTED if is_said(message, [said.removesuffix(".")])]
    if not found:
        raise ValueError(f"Expected a message of the page; got {said!r}")
    return max(found, key=lambda message: len(message.replace("…", "")))


def is_said(message: str, texts: Sequence[str]) -> bool:
    """Whether a message is among some texts, its blanks filled.

    Why one latent is left out is told as one reason of several.
    """
    pattern = ".*".join(map(re.escape, message.split("…")))
    reason = pattern.removeprefix(r".*:\ sites\ names\ '.*',\ which\ ")
    if reason != pattern:
        pattern = rf"{pattern}|.*: no latent is left to penalise: '\w+' {reason}"
    return any(re.fullmatch(pattern, text, re.DOTALL) for text in texts)


def said_by(action: Action) -> list[str]:
    """All that is said while something is done: an error, its notes, and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts = []
        try:
            take(action)
        except Exception as error:
            first = str(error.args[0] if error.args else error)
            # Pyro appends the shapes of its trace.
            texts = [first, first.splitlines()[0], *getattr(error, "__notes__", ())]
    texts += [str(warning.message) for warning in caught]
    return [text.replace("numpyro.plate", "pyro.plate").removesuffix(".") for text in texts]


def take(action: Action) -> None:
    """Do something from an empty store, and wait for what is said while it runs on the device."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    action()
    jax.effects_barrier()

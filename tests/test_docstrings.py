"""What both halves say of their questions is one text, and it describes every argument."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import numpyro_backend.diagnostics
import numpyro_backend.inference_data
import pyro_infovae.diagnostics
import pyro_infovae.inference_data
from pyro_infovae._core.docstrings import ARGUMENTS, documented

HALVES = (pyro_infovae, numpyro_backend)
QUESTIONS = [
    ("diagnostics", name)
    for name in pyro_infovae.diagnostics.__all__
    if inspect.isfunction(getattr(pyro_infovae.diagnostics, name))
] + [("inference_data", "to_inference_data")]


def described(function: Callable[..., Any]) -> list[str]:
    section = re.search(r"^Args:\n(.*?)\n\n", function.__doc__ or "", re.DOTALL | re.MULTILINE)
    assert section is not None
    return re.findall(r"^    \*{0,2}(\w+): ", section[1], re.MULTILINE)


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.__name__)
@pytest.mark.parametrize(("module", "name"), QUESTIONS, ids=[name for _, name in QUESTIONS])
def test_every_argument_is_described(half: Any, module: str, name: str) -> None:
    function = getattr(getattr(half, module), name)
    assert described(function) == list(inspect.signature(function).parameters)
    assert "$" not in function.__doc__
    summary, _, rest = function.__doc__.partition("\n\n")
    assert "\n" not in summary
    sections = ["Args:", "Returns:", "Raises:", "References:", "Example:"]
    found = [line for line in rest.splitlines() if line in sections]
    assert found == [section for section in sections if section in found]
    assert {"Args:", "Returns:", "Raises:", "Example:"} <= set(found)


def test_both_halves_have_the_same_records() -> None:
    for name in pyro_infovae.diagnostics.__all__:
        ours, theirs = (getattr(half.diagnostics, name) for half in HALVES)
        assert (ours is theirs) == inspect.isclass(ours)


class TestDocumented:
    def test_arguments_come_in_the_order_of_the_signature(self) -> None:
        @documented(
            """
        What it means.

        Args:
            last: a thing
                of two lines.
            foreign: not here.
            first: $what.

        Returns:
            Nothing.
        """,
            what="the beginning",
        )
        def function(first: int, *args: Any, sites: Any = None, last: int = 1) -> None:
            """Do it.

            Example:
                >>> 1
                1
            """

        assert function.__doc__ == (
            "Do it.\n\nWhat it means.\n\nArgs:\n    first: the beginning.\n"
            f"    *args: {ARGUMENTS['args']}\n"
            "    sites: the latents, by name, in one stack of plates. By default every "
            "reparameterised\n        latent in plates.\n"
            "    last: a thing\n        of two lines.\n\n"
            "Returns:\n    Nothing.\n\nExample:\n    >>> 1\n    1"
        )

    def test_of_a_class(self) -> None:
        @documented("""
        Args:
            size: how large.
        """)
        class Box:
            """Holds things."""

            def __init__(self, size: int) -> None:
                self.size = size

        assert Box.__doc__ == "Holds things.\n\nArgs:\n    size: how large."

    def test_a_text_without_arguments(self) -> None:
        @documented("More.")
        def function(unknown: int) -> None:
            """Do it."""

        assert function.__doc__ == "Do it.\n\nMore."

    @pytest.mark.parametrize("text", ["Args:\n    other: no.", "$unknown"])
    def test_refuses_what_it_knows_nothing_of(self, text: str) -> None:
        def function(argument: int) -> None:
            """Do it."""

        with pytest.raises(KeyError):
            documented(text)(function)

    def test_without_docstrings(self) -> None:
        def function(argument: int) -> None: ...

        assert documented("Args:\n    other: no.")(function).__doc__ is None

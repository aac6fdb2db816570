# SPDX-License-Identifier: MIT
"""Copies of functions that see other globals: Pyro's own code put to use, Pyro's modules as is."""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def with_globals(function: Callable[..., Any], **replacements: object) -> FunctionType:
    """A copy of a function in which some global names mean something else.

    Args:
        function: a function written in Python, which stays as it is.
        **replacements: what the names mean in the copy.
    """
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__,
        {**function.__globals__, **replacements},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )

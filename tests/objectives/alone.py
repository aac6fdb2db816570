"""Marks of what one half has and the other has not, or takes long where it is compiled."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from tests.numpyro_backend.half import NUMPYRO
from tests.pyro_infovae.half import PYRO

in_pyro = pytest.mark.parametrize("half", [PYRO], ids=["pyro"], indirect=True)
in_numpyro = pytest.mark.parametrize("half", [NUMPYRO], ids=["numpyro"], indirect=True)

slow_in_numpyro = pytest.mark.parametrize(
    "half",
    [pytest.param(PYRO, id="pyro"), pytest.param(NUMPYRO, id="numpyro", marks=pytest.mark.slow)],
    indirect=True,
)


def in_both(name: str, values: Iterable[Any], *, quick: Collection[Any]) -> Any:
    """An argument in both halves, in NumPyro's marked as slow beside a few quick values."""
    cases = []
    for value in values:
        slow = [] if value in quick else [pytest.mark.slow]
        cases.append(pytest.param(PYRO, value, id=f"pyro-{value}"))
        cases.append(pytest.param(NUMPYRO, value, id=f"numpyro-{value}", marks=slow))
    return pytest.mark.parametrize(("half", name), cases, indirect=["half"])

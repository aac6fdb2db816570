"""Tests of the objectives, once for both halves; what is special to one names it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.halves import Half
from tests.numpyro_backend.half import NUMPYRO
from tests.pyro_infovae.half import PYRO


@pytest.fixture(params=[PYRO, NUMPYRO], ids=["pyro", "numpyro"])
def half(request: pytest.FixtureRequest) -> Iterator[Half]:
    """In double precision, and compiled quickly rather than well."""
    with request.param.precision(double=True):
        yield request.param

"""Each test of a library runs with the library's settings."""

from collections.abc import Iterator

import pytest

from tests.arrays.libraries import JAX, LIBRARIES, Library


@pytest.fixture(params=LIBRARIES.values(), ids=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """Either half."""
    with request.param.active():
        yield request.param


@pytest.fixture
def jax_active() -> Iterator[None]:
    """JAX's settings."""
    with JAX.active():
        yield

"""Both halves, one after the other: in double precision, and compiled quickly rather than well."""

from collections.abc import Iterator

import jax
import pytest

from tests.questions.asking import HALVES, Asking


@pytest.fixture(params=HALVES)
def half(request: pytest.FixtureRequest) -> Iterator[Asking]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield HALVES[request.param]
    jax.config.update("jax_disable_most_optimizations", before)

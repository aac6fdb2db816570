"""How the objectives are tried: in double precision, and compiled quickly rather than well."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def quick_double_precision() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_ranks() -> Iterator[None]:
    """No array is broadcast to a rank that it has not; scalars are."""
    with jax.numpy_rank_promotion("raise"):
        yield

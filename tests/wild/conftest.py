"""Programs of other people's kind, once for both halves."""

from tests.arrays.conftest import jax_active as jax_active
from tests.arrays.conftest import library as library
from tests.objectives.conftest import half as half

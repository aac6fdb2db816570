"""shared_jit: functions that come out the same are compiled once, and none is mistaken."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from numpyro_backend._arrays.shared_jit import _met_before, shared_jit
from tests.numpyro_backend.compilations import counting_compilations

X = np.arange(3.0, dtype=np.float32)


def plus(value: Any) -> Callable[[Array], Array]:
    return lambda x: x + value


class Shift:
    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self, x: Array) -> Array:
        return x + self.value


@dataclass
class Unhashable:
    value: Any

    def __call__(self, x: Array) -> Array:
        return x + self.value


def plus_within_jit(value: Any) -> Callable[[Array], Array]:
    array = np.full(3, value, np.float32)
    return lambda x: jax.jit(lambda y: y + array)(x)


def plus_on_the_host(value: Any) -> Callable[[Array], Array]:
    out = jax.ShapeDtypeStruct((3,), jnp.float32)
    return lambda x: jax.pure_callback(lambda y: y + np.float32(value), out, x)


PLUS: dict[str, Callable[[Any], Callable[[Array], Array]]] = {
    "number": plus,
    "NumPy array": lambda value: plus(np.full(3, value, np.float32)),
    "array": lambda value: plus(jnp.full(3, value)),
    "partial": lambda value: partial(jnp.add, value),
    "bound method": lambda value: Shift(value).method,
    "unhashable": Unhashable,
    "array within jit": plus_within_jit,
    "callback": plus_on_the_host,
}


@pytest.mark.parametrize("make", PLUS.values(), ids=PLUS)
def test_what_a_function_reads_is_that_of_now(make: Callable[[Any], Any]) -> None:
    for value in (1.0, 2.0, 1.0):
        np.testing.assert_array_equal(shared_jit(make(value))(X), X + value)


def test_state_that_changes_between_calls() -> None:
    shift = Shift(1.0)
    before = shared_jit(shift.method)(X)
    shift.value = 5.0
    np.testing.assert_array_equal(shared_jit(shift.method)(X) - before, np.full(3, 4.0))


@pytest.mark.parametrize(
    "make",
    [PLUS["NumPy array"], PLUS["array"]],
    ids=["NumPy array", "array"],
)
def test_arrays_of_one_shape_share_a_program(make: Callable[[Any], Any]) -> None:
    one, other = make(1.0), make(2.0)
    _met_before.cache_clear()
    with counting_compilations() as first:
        shared_jit(one)(X)
    with counting_compilations() as second:
        result = shared_jit(other)(X)
    assert (len(first), len(second)) == (1, 0)
    np.testing.assert_array_equal(result, X + 2)


def test_one_function_is_traced_once_for_each_kind_of_arguments() -> None:
    traced = []

    @shared_jit
    def sum_of(values: dict[str, Array]) -> Array:
        traced.append(list(values))
        return jnp.sum(jnp.stack([value.sum() for value in values.values()]))

    for scale in (1.0, 2.0):
        assert sum_of({"a": scale * X}) == scale * 3
        assert sum_of({"a": scale * X, "b": X}) == scale * 3 + 3
        assert sum_of({"a": scale * X[:2]}) == scale
    assert traced == [["a"], ["a", "b"], ["a"]]


def test_programs_that_differ_in_what_they_leave_out() -> None:
    """Once arguments that are not used are dropped, both are the identity."""
    assert shared_jit(lambda x, y: x)(X, 2 * X)[2] == 2
    assert shared_jit(lambda x, y: y)(X, 2 * X)[2] == 4


def test_types_that_are_lowered_to_the_same() -> None:
    strong, weak = (shared_jit(lambda x, one=one: one)(X) for one in (np.float32(1.0), 1.0))
    assert (strong.weak_type, weak.weak_type) == (False, True)
    key = jax.random.key(3)
    data = jax.random.key_data(key)
    np.testing.assert_array_equal(shared_jit(jax.random.key_data)(key), data)
    np.testing.assert_array_equal(shared_jit(lambda x: x)(data), data)
    assert shared_jit(jax.random.wrap_key_data)(data) == key


def test_structure_that_is_no_array() -> None:
    @shared_jit
    def describe(x: Array) -> dict[str, Any]:
        return {"pair": (x, None), "norm": jnp.linalg.norm(x)}

    described = describe(X)
    assert described["pair"][1] is None
    np.testing.assert_allclose(described["norm"], np.sqrt(5.0), rtol=1e-6)


def test_no_data_are_kept() -> None:
    data = jnp.arange(1000.0)
    kept = weakref.ref(data)
    assert shared_jit(lambda x, data=data: data.sum() + x)(1.0) == 499501.0
    del data
    gc.collect()
    assert kept() is None


IN_EQUATIONS = """
import numpy as np
from numpyro_backend._arrays.shared_jit import shared_jit
for value in (1.0, 2.0):
    array = np.full(100, value, np.float32)
    print(shared_jit(lambda x: x + array)(0.5)[0])
"""


def test_arrays_in_equations_are_not_mistaken() -> None:
    """JAX will hoist them, so that the text of a program does not hold their values."""
    done = subprocess.run(
        [sys.executable, "-c", IN_EQUATIONS],
        env={**os.environ, "JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.5", "2.5"]

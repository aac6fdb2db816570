# SPDX-License-Identifier: MIT
"""Compilation of functions that are made anew in every call, and mostly come out the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

__all__ = ["shared_jit"]

_MAX_PROGRAMS = 64


def shared_jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function as :func:`jax.jit` does, unless its program is compiled already.

    The function is traced once for each kind of arguments, as under :func:`jax.jit`, and the
    program that comes of it is looked up among those of earlier functions. Whatever it reads, a
    closure, an attribute or a global, thus counts with its value of now; the arrays among these are
    arguments of the program, which others of their shape share. The last 64 programs are kept,
    without their arguments.

    Args:
        fn: a pure function of arrays, or pytrees of them, by position.

    Returns:
        The compiled function.

    Example:
        >>> def squared_distance_to(centre):
        ...     return shared_jit(lambda x: ((x - centre) ** 2).sum())
        >>> x = jax.numpy.ones(3)
        >>> [float(squared_distance_to(c * x)(x)) for c in (1.0, 2.0)]  # compiled once
        [0.0, 3.0]
    """
    programs: dict[Any, Callable[..., Any]] = {}

    def run(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        kind = structure, *map(jax.typeof, leaves)
        if kind not in programs:
            programs[kind] = _traced(fn, args)
        return programs[kind](leaves)

    return run


@dataclass(frozen=True)
class _Program:
    """A function of lists of arrays, equal to any other of its text and types.

    Attributes:
        digest: the hash of the text that JAX lowers it to.
        types: of constants, arguments and results; the text tells no key, and no weak type.
        run: the function of constants and arguments, compiled when it is first called.
    """

    digest: bytes
    types: tuple[Any, ...]
    run: Callable[[list[Any], list[Any]], list[Array]] = field(compare=False)


@lru_cache(_MAX_PROGRAMS)
def _met_before(program: _Program) -> _Program:
    """The first program that equals this one, which is compiled."""
    return program


def _traced(fn: Callable[..., Any], args: Sequence[Any]) -> Callable[[list[Any]], Any]:
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    consts, structure = jax.device_put(closed.consts), jax.tree.structure(out)
    program = _program(closed.jaxpr, consts, jax.tree.leaves(args))
    return lambda leaves: jax.tree.unflatten(structure, program.run(consts, leaves))


def _program(jaxpr: Jaxpr, consts: list[Any], leaves: list[Any]) -> _Program:
    @partial(jax.jit, keep_unused=True)  # the text would not say which are
    def run(consts: list[Any], leaves: list[Any]) -> list[Array]:
        return jax.core.eval_jaxpr(jaxpr, consts, *leaves)

    text = run.lower(consts, leaves).as_text()
    types = tuple(atom.aval for atom in (*jaxpr.constvars, *jaxpr.invars, *jaxpr.outvars))
    program = _Program(hashlib.sha256(text.encode()).digest(), types, run)
    return _met_before(program) if _is_told_by_text(jaxpr) else program


def _is_told_by_text(jaxpr: Jaxpr) -> bool:
    """Whether the text of a program holds all that it refers to.

    It does not hold Python functions to call back, nor arrays that JAX leaves in equations and
    hoists when it lowers them, as under ``jax_use_simplified_jaxpr_constants``.
    """
    equations = list(_equations(jaxpr))
    calls_back = jaxpr.effects or any("callback" in eqn.primitive.name for eqn in equations)
    atoms = [*jaxpr.outvars, *(atom for eqn in equations for atom in eqn.invars)]
    holds_array = any(isinstance(atom, Literal) and np.ndim(atom.val) > 0 for atom in atoms)
    return not (calls_back or holds_array)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)

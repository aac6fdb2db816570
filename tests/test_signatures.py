"""Whoever knows one half knows the other: names, order of arguments and defaults are the same."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import numpyro_backend
import pyro_infovae

MODULES = [
    "kernels",
    "mmd",
    "mutual_information",
    "tempering",
    "critics",
    "trace_mmd_elbo",
]

# NumPyro has no counterpart: its objectives find out the nesting themselves.
PYRO_ARGUMENTS = {"max_plate_nesting"}
# Each half has its framework's own default.
OWN_DEFAULTS = {"vectorize_particles", "activation"}
# JAX keeps parameters beside a critic: these are a critic with its parameters.
NUMPYRO_NAMES = {"BoundConcatCritic", "BoundSeparableCritic"}


def public(module: ModuleType) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [
        (p.name, p.kind, None if p.name in OWN_DEFAULTS else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name not in PYRO_ARGUMENTS
    ]


@pytest.mark.parametrize("name", MODULES)
def test_both_halves_have_the_same_signatures(name: str) -> None:
    theirs, ours = (
        public(importlib.import_module(f"{package}.{name}"))
        for package in ("pyro_infovae", "numpyro_backend")
    )
    assert theirs.keys() == ours.keys() - NUMPYRO_NAMES
    assert theirs
    for key, function in theirs.items():
        assert arguments(ours[key]) == arguments(function), key


def test_both_halves_export_the_same_objectives() -> None:
    objectives = [name for name in numpyro_backend.__all__ if name.endswith("_ELBO")]
    assert objectives
    assert set(objectives) <= set(pyro_infovae.__all__)
    assert numpyro_backend.__version__ == pyro_infovae.__version__

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

OBJECTIVES = {
    "trace_mmd_elbo": "TraceMMD_ELBO",
    "trace_infomax_elbo": "TraceInfoMax_ELBO",
    "trace_hamiltonian_elbo": "TraceHamiltonian_ELBO",
}
MODULES = [
    "kernels",
    "mmd",
    "mutual_information",
    "tempering",
    "critics",
    "_traces.critic_data",
    "_arrays.negatives",
    "_objectives.flow_parameters",
    *OBJECTIVES,
    "_diagnostics.aggregated_posterior",
    "_diagnostics.calibration",
    "_diagnostics.critic_information",
    "_diagnostics.dimensions",
    "_diagnostics.discrepancy",
    "_diagnostics.evidence",
    "diagnostics",
    "inference_data",
]
# NumPyro's objectives find out the nesting themselves, its runs are stacked into one, and under jit
# they see the rows of all devices.
PYRO_ARGUMENTS = {"max_plate_nesting", "num_rows", "runs", "particles", "gather"}
# JAX has neither a random state nor a param store.
NUMPYRO_ARGUMENTS = {"rng_key", "params"}
# Each half has its framework's own default.
OWN_DEFAULTS = {"vectorize_particles", "activation"}
# JAX keeps parameters beside a critic: these are a critic with its parameters.
NUMPYRO_NAMES = {"BoundCritic", "BoundSeparableCritic"}
# The frameworks' own ways to a loss, and to parameters.
OWN_METHODS = {
    "loss",
    "evaluate",
    "differentiable_loss",
    "loss_and_grads",
    "loss_with_mutable_state",
    "wrap_model",
    "wrap_guide",
    "bind_critic",
}


def public(module: ModuleType) -> dict[str, Callable[..., Any]]:
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    named = {name: getattr(module, name) for name in getattr(module, "__all__", own)}
    return {
        name: value
        for name, value in named.items()
        if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
    }


def methods(objective: type) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for base in objective.__mro__
        if base.__module__.split(".")[0] in ("pyro_infovae", "numpyro_backend")
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in OWN_METHODS
    }


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [
        (p.name, p.kind, None if p.name in OWN_DEFAULTS else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name not in PYRO_ARGUMENTS | NUMPYRO_ARGUMENTS
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
        assert ours[key] is function or arguments(ours[key]) == arguments(function), key


@pytest.mark.parametrize(("module", "name"), OBJECTIVES.items())
def test_both_halves_have_the_same_methods(module: str, name: str) -> None:
    theirs, ours = (
        methods(getattr(importlib.import_module(f"{package}.{module}"), name))
        for package in ("pyro_infovae", "numpyro_backend")
    )
    assert theirs.keys() == ours.keys()
    for key, function in theirs.items():
        assert arguments(ours[key]) == arguments(function), key


def test_both_halves_have_the_same_diagnostics() -> None:
    theirs, ours = (
        importlib.import_module(f"{package}.diagnostics").__all__
        for package in ("pyro_infovae", "numpyro_backend")
    )
    assert theirs == ours


def test_both_halves_export_the_same_objectives() -> None:
    objectives = [name for name in numpyro_backend.__all__ if name.endswith("_ELBO")]
    assert objectives
    assert set(objectives) <= set(pyro_infovae.__all__)
    assert numpyro_backend.__version__ == pyro_infovae.__version__

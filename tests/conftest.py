"""Every test starts from an empty param store, a fixed seed, float64, validation and no figure."""

import gc
import os
import sys
from collections.abc import Iterator

import pyro
import pytest
import torch

# Most of the time goes into compilations of small functions: XLA need not optimise them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

# The compiled functions of thousands of tests stay: looking through them all is not for every test.
gc.set_threshold(100_000, 50, 100)

pytest.register_assert_rewrite(
    "tests.elbo_suite",
    "tests.objective_suites",
    *(f"tests.{folder}" for folder in ("arrays", "objectives", "questions", "wild")),
    *(f"tests.{half}" for half in ("pyro_infovae", "numpyro_backend")),
)

TWINS_THAT_TAKE_LONG = {
    "TraceHamiltonian_ELBO",
    "TraceInfoMax_ELBO",
    "aggregated_posterior",
    "mmd_test",
    "mutual_information",
    "simulation_based_calibration",
    "suggest_lambd",
    "summarise",
    "to_inference_data",
}
"""Whose examples are Pyro's too, where nothing has to be compiled."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_example = item.nodeid.startswith("numpyro_backend/")
        if is_example and item.name.rpartition(".")[2] in TWINS_THAT_TAKE_LONG:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def clean_pyro() -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    yield
    torch.set_default_dtype(previous)
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")  # most tests never load it
    if pyplot is not None:
        pyplot.close("all")

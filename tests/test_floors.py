"""Three floors and what stands on them: imports go downwards only, and never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pyro_infovae", "numpyro_backend")
CORE = "pyro_infovae._core"
FLOORS = (
    {"_core"},
    {
        *("_arrays", "kernels", "mmd", "mutual_information", "critics"),
        *("tempering", "integrators"),
    },
    {"_traces", "sites", "rows", "groups"},
    {
        *("_objectives", "penalised_elbo", "svi"),
        *("trace_mmd_elbo", "trace_infomax_elbo", "trace_hamiltonian_elbo"),
    },
    {"_diagnostics", "_compiled_step"},
    {"diagnostics", "inference_data", "compile"},
)


def part(module: str) -> str:
    """The file or folder at the top of its package that a module belongs to."""
    return module.split(".")[1]


def imports(package: str) -> dict[str, set[str]]:
    """The modules of a package that each of them imports."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        if path.name == "__init__.py":
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        found[module] = {name for name in names if name.split(".")[0] in PACKAGES}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_downwards(package: str) -> None:
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    for module, imported in imports(package).items():
        for other in imported:
            own = other.startswith(f"{package}.")
            assert own or other.startswith(CORE), f"{module} imports {other}"
            assert floors[part(other)] <= floors[part(module)], f"{module} imports {other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle(package: str) -> None:
    open_modules = imports(package)
    while free := {name for name, needs in open_modules.items() if not needs & set(open_modules)}:
        open_modules = {n: needs for n, needs in open_modules.items() if n not in free}
    assert not open_modules

"""Every benchmark runs, in its smallest form; and the page is the one of what was measured."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import torch

from benchmarks.measuring import Estimate, Quartiles, interleaved, peak_megabytes, ratios
from benchmarks.mmd_gradient_variance import Case
from benchmarks.networks import Size
from benchmarks.report import BENCHMARKS, FOLDER, Report, load, page, save, section

SIZE = Size(6, 5, 2)
SMALLEST: dict[str, dict[str, Any]] = {
    "exact_evidence": {"num_steps": [1], "draws": 500, "training_steps": 2},
    "annealed_flow": {"seeds": [0], "steps": 2, "draws": 500},
    "flow_harm": {
        "names": ["normal mean, n = 10"],
        "cheap": ["normal mean, n = 100"],
        "seeds": [0],
        "steps": {"Pyro": 2, "NumPyro": 2},
        "draws": {"Pyro": 2, "NumPyro": 2},
    },
    "digits_flow": {"seeds": [0, 1], "steps": 3, "draws": 2},
    "compiled_step": {"sizes": [SIZE], "objectives": ["MMD"], "rounds": 2, "inductor": False},
    "numpyro_step": {"sizes": [SIZE], "objectives": ["MMD"], "rounds": 2},
    "mmd_weights": {"weights": [10.0], "estimators": ["features"], "seeds": 2, "steps": 2},
    "mmd_memory": {
        "memory_rows": {"library": [64], "plain": [64]},
        "step_rows": [64],
        "time_rounds": {64: 2},
    },
    "hamiltonian_cost": {"size": SIZE, "num_steps": [1, 2], "rounds": 2},
    "mmd_gradient_variance": {"cases": [Case(8, 2, 0.1)], "draws": 4, "rounds": 2},
    "mmd_features": {"features": [2], "draws": {8: 4}, "rounds": 2, "growth": [64, 128]},
    "mutual_information": {"truths": [2.0], "seeds": [0, 1], "steps": 2},
    "gpu": {
        "device": "cpu",
        "objectives": ["MMD", "Hamiltonian, annealed"],
        "size": SIZE,
        "mmd_rows": [64],
        "flow_steps": [0, 2],
        "steps": 2,
        "inductor": False,
        "tests": False,
    },
}


def here(function: Callable[..., Any], /, *arguments: object) -> Any:
    return function(*arguments)


def numbers(cell: Any) -> list[float]:
    if isinstance(cell, Quartiles):
        assert cell.low <= cell.median <= cell.high
        return [cell.low]
    if isinstance(cell, Estimate):
        return [cell.error]
    return [cell] if isinstance(cell, int | float) else []


@pytest.fixture
def quick_jax() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_jax")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_smallest_form(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    report: Report = importlib.import_module(f"benchmarks.{name}").measure(here, **SMALLEST[name])
    for table in report.tables:
        assert table
        for row in table:
            assert row.keys() == table[0].keys()
            assert all(math.isfinite(n) for cell in row.values() for n in numbers(cell))
    save(name, report, minutes=0.1, folder=tmp_path)
    kept = load(name, folder=tmp_path)
    assert kept is not None
    assert section(name, kept) in page(folder=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_the_one_on_a_gpu_refuses_without() -> None:
    with pytest.raises(RuntimeError, match=r"Expected a CUDA device; torch .* sees none: run this"):
        importlib.import_module("benchmarks.gpu").measure(here)


def test_the_page_shows_what_was_measured_last() -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page()
    assert {path.stem for path in (FOLDER / "results").iterdir()} <= set(BENCHMARKS)


def test_numbers_are_shown_with_the_digits_that_they_have(tmp_path: Path) -> None:
    row = {
        "count": 16384,
        "ms": 1411.23,
        "small": 0.070831,
        "ratio": Quartiles(0.7412, 0.7634, 12.345),
        "bias": Estimate(-0.04231, 0.00891),
    }
    save("any", Report("Title", "How.", ["torch"], [[row]]), minutes=0.1, folder=tmp_path)
    kept = load("any", folder=tmp_path)
    assert kept is not None
    (line,) = (line for line in section("any", kept).splitlines() if "16384" in line)
    assert line == "| 16384 | 1411 | 0.0708 | 0.763 (0.741 to 12.3) | -0.0423 ± 0.0089 |"


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == Quartiles(2.5, 3.0, 3.5)


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    steps = {name: lambda name=name: turns.append(name) for name in "ab"}
    times = interleaved(steps, rounds=2, steps=1)
    assert turns == [*"aabb"] * 2  # the first of each is not counted
    assert [len(rounds) for rounds in times.values()] == [2, 2]


def test_peak_is_that_of_the_tensors_held_together() -> None:
    def step() -> None:
        one = torch.zeros(2**18, dtype=torch.float32)
        del one
        two = torch.zeros(2**18, dtype=torch.float32)
        assert len(two + 1) == 2**18

    step()
    assert peak_megabytes(step) == pytest.approx(2.0, abs=0.01)

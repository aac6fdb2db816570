"""What the pages of docs/ say runs, and their tables are those of the files they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import pyro
import pytest
import torch

from docs.markdown_table import Column, markdown_table

DOCS = Path(__file__).parents[1] / "docs"
# scaling_out.md needs several processes: tests/examples/ run the programs that it quotes.
PAGES = sorted(page.name for page in DOCS.glob("*.md") if page.name != "scaling_out.md")


def blocks(page: str) -> list[str]:
    """The programs of a page; one marked as a fragment is in another library's words."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def backend(block: str) -> str:
    """Which half a block belongs to."""
    return "numpyro" if re.search(r"numpyro|jax|jnp", block) else "pyro"


@pytest.fixture(autouse=True)
def single_precision_compiled_quickly() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@cache
def start(half: str) -> dict[str, Any]:
    """What the program of start.md leaves, which the other pages take up."""
    (program,) = (block for block in blocks("start.md") if backend(block) == half)
    names: dict[str, Any] = {}
    exec(compile(program, "start.md", "exec"), names)
    return names


@pytest.mark.parametrize("half", ["pyro", "numpyro"])
def test_program_to_start_from_trains(half: str) -> None:
    losses = start(half)["losses"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.filterwarnings("ignore:log_evidence")  # the guides are hardly trained
@pytest.mark.filterwarnings("ignore:TraceHamiltonian_ELBO")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page != "start.md"])
def test_page_runs(page: str) -> None:
    """Blocks run in order, as in a notebook, each in the names of its half."""
    names = {half: dict(start(half)) for half in set(map(backend, blocks(page)))}
    pyro.clear_param_store()
    for block in blocks(page):
        exec(compile(block, page, "exec"), names[backend(block)])


def test_scripts_named_are_there() -> None:
    pages = [*DOCS.glob("*.md"), DOCS / "reproductions/running.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    scripts = set(re.findall(r"(?:examples|benchmarks)/[\w/]+\.py", text))
    assert "examples/compare_objectives.py" in scripts
    for script in scripts:
        assert (DOCS.parent / script).is_file(), script


def test_rows_are_those_said(capsys: pytest.CaptureFixture[str]) -> None:
    names = dict(start("pyro"))
    capsys.readouterr()
    exec(blocks("plates.md")[0], names)
    printed = capsys.readouterr().out.strip()
    assert f"prints `{printed}`" in (DOCS / "plates.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.py")), ids=lambda p: p.stem)
def test_picture_is_drawn(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt.switch_backend("agg")
    monkeypatch.chdir(picture.parent)
    exec(compile(picture.read_text(encoding="utf-8"), picture, "exec"), {})
    (figure,) = map(plt.figure, plt.get_fignums())
    assert all(axes.has_data() for axes in figure.axes)


def test_result_table_averages_over_seeds() -> None:
    rows = [
        {"objective": "elbo", "kl": "1.0", "loss": "7"},
        {"objective": "mmd", "kl": "0.25", "loss": "7"},
        {"objective": "elbo", "kl": "3.0", "loss": "7"},
    ]
    columns = [Column("objective", "objective"), Column("kl", "KL", ".1f")]
    assert markdown_table(rows, columns) == [
        "| objective | KL |",
        "| --- | ---: |",
        "| elbo | 2.0 ± 1.4 |",
        "| mmd | 0.2 |",
    ]

"""What the pages of docs/ say runs, and their tables are of the trainings beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pytest
import torch

from demo.report import MEASURES

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


@pytest.mark.parametrize("half", ["pyro", pytest.param("numpyro", marks=pytest.mark.slow)])
def test_program_to_start_from_trains(half: str) -> None:
    losses = start(half)["losses"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("trainings", "summary"),
    [("demo/seeds.csv", "demo/seeds_summary.csv"), ("collapse/table.csv", "collapse/summary.csv")],
)
def test_summaries_are_of_the_trainings_beside_them(trainings: str, summary: str) -> None:
    runs = pd.read_csv(DOCS / trainings).groupby("objective", sort=False)
    shown = pd.read_csv(DOCS / summary, index_col=0)
    for column, (heading, form) in MEASURES.items():
        for name, values in runs[column]:
            cell = f"{form.format(values.mean())} ± {form.format(values.std())}"
            assert shown.loc[heading, name] == cell

"""What the README says runs, and its table is the one that the demo wrote."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import numpyro
import pyro
import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = [
    block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import" in block
]


@pytest.mark.filterwarnings("ignore:log_evidence")  # after three steps
def test_pyro_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)
    scripts = [block for block in BLOCKS if "numpyro" not in block]
    assert len(scripts) == 4
    names: dict[str, Any] = {}
    for script in scripts:
        exec(script.replace("range(1000)", "range(3)"), names)
    assert names["loss"] > 0
    assert set(names["better_guide"](names["data"])) == {"z"}
    assert "decoder$$$weight" in pyro.get_param_store()
    assert len(names["losses"]) == 3
    assert "active_units" in capsys.readouterr().out
    assert names["posterior"].posterior["z"].sizes["draw"] == 1000


def first_program(loss: str, seed: int) -> tuple[float, float, list[float]]:
    """KL, exact -log p(x) and the last losses of README's first program, in nats per row."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    names: dict[str, Any] = {"Trace_ELBO": pyro.infer.Trace_ELBO}
    exec(BLOCKS[0].replace("TraceMMD_ELBO()", loss), names)
    svi, data = names["svi"], names["data"]
    last = [svi.step(data) / len(data) for _ in range(100)]
    with torch.no_grad():
        loc, log_scale = names["encoder"](data).chunk(2, -1)
        kl = (0.5 * (loc**2 + (2 * log_scale).exp() - 1) - log_scale).sum(-1).mean()
        weight, bias = names["decoder"].weight, names["decoder"].bias
        normal = torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.eye(2) / 4)
        return kl.item(), -normal.log_prob(data).mean().item(), last


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_first_program_learns(seed: int) -> None:
    """The code tells of the data, and the data are as probable as the stock ELBO makes them."""
    torch.set_default_dtype(torch.float32)
    _, stock, _ = first_program("Trace_ELBO()", seed)
    kl, ours, last = first_program("TraceMMD_ELBO()", seed)
    assert kl > 1
    assert ours < stock + 0.15
    assert max(last) - mean(last) < 1
    assert mean(last) - min(last) < 1


@pytest.mark.slow
def test_numpyro_block_runs() -> None:
    (script,) = (block for block in BLOCKS if "numpyro" in block)
    names: dict[str, Any] = {}
    exec(script.replace("1000, data", "3, data"), names)
    assert names["result"].losses.shape == (3,)
    assert "hamiltonian.step_size_z" in names["result"].params
    draws = numpyro.infer.Predictive(
        names["model"], guide=names["better_guide"], params=names["result"].params, num_samples=2
    )(jax.random.key(0), names["data"])
    assert draws["x"].shape == (2, 100, 2)


def test_files_linked_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def read(path: str) -> list[dict[str, str]]:
    with (ROOT / path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_is_the_demos() -> None:
    formats = {
        "loss": "{:.2f}",
        "reconstruction": "{:.2f}",
        "log_prob": "{:.2f}",
        "unreliable": "{:.0%}",
        "kl": "{:.2f}",
        "mmd_squared": "{:.4f}",
        "knn_accuracy": "{:.1%}",
    }
    for row in read("docs/demo/table.csv"):
        cells = [form.format(float(row[name])) for name, form in formats.items()]
        assert f"| {row['objective']} | {' | '.join(cells)} |" in README


def test_spread_over_seeds_is_the_demos() -> None:
    values = {
        name: [float(r["log_prob"]) for r in read("docs/demo/seeds.csv") if r["objective"] == name]
        for name in ("hamiltonian", "elbo")
    }
    flow, stock = (f"{mean(seeds):.1f} ± {stdev(seeds):.1f}" for seeds in values.values())
    assert f"over five seeds ({flow} against {stock} under `elbo`" in " ".join(README.split())


def test_collapse_table_is_the_demos() -> None:
    formats = {
        "log_prob": "{:.1f}",
        "kl": "{:.1f}",
        "active_units": "{:.1f}",
        "information": "{:.1f}",
        "knn_accuracy": "{:.0%}",
    }
    rows = read("docs/collapse/table.csv")
    for name in dict.fromkeys(row["objective"] for row in rows):
        seeds = [row for row in rows if row["objective"] == name]
        assert len(seeds) == 3
        cells = []
        for column, form in formats.items():
            values = [float(row[column]) for row in seeds]
            cells.append(f"{form.format(mean(values))} ± {form.format(stdev(values))}")
        assert f"| {name} | {' | '.join(cells)} |" in README


def test_eight_schools_are_the_examples() -> None:
    alone, flow, _ = (row["unreliable"] for row in read("docs/eight_schools/leave_one_out.csv"))
    words = " ".join(README.split())
    assert f"{alone} of 8 schools with the guide alone and for {flow} with the flow" in words


def measured(benchmark: str) -> list[dict[str, Any]]:
    """The rows of all tables of a benchmark."""
    path = ROOT / "benchmarks" / "results" / f"{benchmark}.json"
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return [row for table in tables for row in table]


def ratios(rows: list[dict[str, Any]], column: str) -> str:
    """The medians of a column, one or more, as the README writes them."""
    assert rows
    return " to ".join(f"{ratio:.2f}" for ratio in sorted(row[column]["median"] for row in rows))


def test_numpyro_step_is_the_benchmarks() -> None:
    rows = [row for row in measured("numpyro_step") if row["objective"] == "TraceMMD_ELBO"]
    claim = f"takes {ratios(rows, 'ours / by hand')} times as long"
    assert claim in " ".join(README.split())


def test_compiled_steps_are_the_benchmarks() -> None:
    rows = measured("compiled_step")
    for objective, name in (("MMD", "TraceMMD_ELBO"), ("InfoMax", "TraceInfoMax_ELBO")):
        for way in ("SVI", "CompiledSVI, fused Adam", "CompiledSVI, fused Adam, inductor"):
            svi, *rest = way.split(", ")
            label = ", ".join((f"`{name}`", f"`{svi}`", *rest))
            found = [row["against by hand"]["median"] for row in rows if row.get(objective) == way]
            assert f"| {label} | {' | '.join(f'{ratio:.2f}' for ratio in found)} |" in README


def test_steps_beside_pythae_are_the_benchmarks() -> None:
    ours = ("CompiledSVI, fused Adam", "CompiledSVI, fused Adam, inductor")
    found = [
        [row for row in measured("compiled_step") if row.get("MMD of seven IMQ kernels") == way]
        for way in ours
    ]
    plain, inductor = (ratios(rows, "against pythae InfoVAE_MMD by default") for rows in found)
    claim = f"takes {plain} times as long as pythae's, and {inductor} times with inductor"
    assert claim in " ".join(README.split())


def test_evidence_is_the_benchmarks() -> None:
    rows = [row for row in measured("exact_evidence") if row["K"] in (0, 3)]
    assert len(rows) == 6
    for row in rows:
        bound, weight = (
            f"{row[column]['mean']:.3f} ± {row[column]['error']:.3f}"
            for column in ("ELBO", "log E[w]")
        )
        cells = row["model"], f"{float(row['log p(x)']):.3f}", str(row["K"]), bound, weight
        assert f"| {' | '.join(cells)} |" in README


def test_memory_is_the_benchmarks() -> None:
    (row,) = (
        row
        for row in measured("mmd_memory")
        if row.get("MMD²") == "library" and row["rows of x and of y"] == 16384
    )
    claim = f"The MMD of 16,384 rows takes {row['peak, MB']:.0f} MB beyond the inputs"
    assert claim in " ".join(README.split())

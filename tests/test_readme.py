"""What the README says runs, and its table is the one that the demo wrote."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pyro
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run() -> None:
    torch.set_default_dtype(torch.float32)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scripts = [block for block in blocks if "import" in block]
    assert len(scripts) == 2
    names: dict[str, object] = {}
    for script in scripts:
        exec(script.replace("range(1000)", "range(3)"), names)
    assert names["loss"] > 0
    assert set(names["better_guide"](names["data"])) == {"z"}
    assert "decoder$$$weight" in pyro.get_param_store()


def test_files_linked_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_table_is_the_demos() -> None:
    with (ROOT / "docs/demo/table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    formats = {
        "loss": "{:.2f}",
        "reconstruction": "{:.2f}",
        "log_prob": "{:.2f}",
        "unreliable": "{:.0%}",
        "kl": "{:.2f}",
        "mmd_squared": "{:.4f}",
        "knn_accuracy": "{:.1%}",
    }
    for row in rows:
        cells = [form.format(float(row[name])) for name, form in formats.items()]
        assert f"| {row['objective']} | {' | '.join(cells)} |" in README

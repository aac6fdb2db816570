"""The objective that CONTRIBUTING.md adds keeps the contract, from the files that are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.halves import Half

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))


def run(file: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": file.removesuffix(".py").replace("/", ".")}
    exec(compile(FILES[file], file, "exec"), names)
    return names


class TestTraceSliced(run("tests/objectives/test_trace_sliced_elbo.py")["TestTraceSliced"]):
    @pytest.fixture(autouse=True)
    def in_half(self, half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
        package = half.library.__name__
        objective = run(f"{package}/trace_sliced_elbo.py")[self.name]
        monkeypatch.setattr(half.library, self.name, objective, raising=False)
        self.half, self.elbo = half, objective

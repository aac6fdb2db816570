"""What every example says of bad options: one line, and nothing heavy is imported to read them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import compare_objectives
import pytest

from demo.cli import build_parser
from reproduction.options import parse

EXAMPLES = Path(compare_objectives.__file__).parent
READERS: dict[str, Callable[[Sequence[str]], object]] = {
    "demo": lambda argv: build_parser(["elbo"], description="Demo.").parse_args(argv),
    "reproduction": lambda argv: parse("name", "Reproduction.", argv),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_bad_options_give_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    read: Callable[[Sequence[str]], object],
) -> None:
    monkeypatch.setattr(sys, "argv", ["example.py"])
    with pytest.raises(SystemExit, match="2"):
        read(["--backend", "torch"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("example.py: error: argument --backend: invalid choice: 'torch'")


def test_options_of_a_reproduction_are_read_without_the_demos_libraries() -> None:
    program = "import sys, reproduction.options; print('numpy' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=EXAMPLES / "reproductions",
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "False\n"

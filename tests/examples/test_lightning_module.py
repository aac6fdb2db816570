"""The example under Lightning: two processes beside one, and a resumed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
from lightning_module import OBJECTIVES, main

from tests.examples import lightning_worker

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    run = subprocess.run(
        [sys.executable, lightning_worker.__file__, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    torch.set_default_dtype(torch.float64)
    alone = lightning_worker.train(devices=1)
    assert alone[1] < alone[0] - 50
    assert json.loads(path.read_text()) == pytest.approx(alone, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_goes_on_to_the_same_losses(objective: str, tmp_path: Path) -> None:
    def train(name: str, *, epochs: int, more: tuple[str, ...] = ()) -> list[float]:
        checkpoint = tmp_path / name
        arguments = [f"--objective={objective}", f"--epochs={epochs}", f"--checkpoint={checkpoint}"]
        assert main([*arguments, *more]) == 0
        saved = torch.load(checkpoint, weights_only=True)
        return saved["callbacks"]["Losses"]["history"]

    whole = train("whole.ckpt", epochs=3)
    assert whole[2] < whole[0] - 50
    assert len(train("cut.ckpt", epochs=2)) == 2
    assert train("cut.ckpt", epochs=3, more=("--resume",)) == whole

"""The sharded example: several devices train as one does, under every objective."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = """
import json
import sharded_numpyro as example

train, losses = example.train, []
def record(*args, **kwargs):
    losses.append(train(*args, **kwargs))
    return losses[-1]
example.train = record

simulate = ["--simulate-devices=4"]  # settled when JAX starts
for name in example.OBJECTIVES:
    example.main([f"--objective={name}", "--epochs=1", *simulate])
    simulate.clear()
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_four_devices_train_as_one() -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=EXAMPLES,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "JAX_ENABLE_X64": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    *printed, last = process.stdout.splitlines()
    losses = json.loads(last)
    assert len(losses) == 6
    for one, four in zip(losses[::2], losses[1::2], strict=True):
        assert four == pytest.approx(one, rel=1e-8)
        heading, row, *printed = printed
        assert heading.startswith("epoch   1 device   4 devices")
        assert row.split() == ["1", f"{one[0]:.4f}", f"{four[0]:.4f}"]

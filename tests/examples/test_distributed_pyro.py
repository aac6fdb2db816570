"""The example on several processes: beside one process, and after one of them was killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_pyro import OBJECTIVES, train

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed_pyro.py"
EPOCHS, TIMEOUT = 6, 30


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the example; what is left of it ends with the test."""
    processes = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def start_ranks(start: Start, *arguments: str) -> list[subprocess.Popen[str]]:
    """Two ranks, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            *arguments,
            f"--timeout={TIMEOUT}",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME="lo",
        )
        for rank in range(2)
    ]


def losses(checkpoint: Path) -> list[float]:
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return saved["losses"]


@pytest.mark.slow
def test_ranks_train_like_one_process_and_go_on_after_one_was_killed(
    start: Start, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    simulated = start("--simulate=2", f"--epochs={EPOCHS}", f"--checkpoint={whole}")
    printed, _ = simulated.communicate(timeout=120)
    assert simulated.returncode == 0, printed
    table = [line.split() for line in printed.splitlines()[-EPOCHS:]]
    assert [int(epoch) for epoch, _, _ in table] == list(range(1, EPOCHS + 1))
    for _, alone, together in table:
        # The minibatches are the same and the noise is not: a few nats of hundreds.
        assert float(together) == pytest.approx(float(alone), rel=0.01)
    assert [float(together) for *_, together in table] == pytest.approx(losses(whole), abs=1e-4)

    left, killed = start_ranks(start, "--epochs=100000", f"--checkpoint={cut}")
    assert left.stdout is not None
    for line in left.stdout:
        if line.startswith("epoch 2:"):
            break
    killed.kill()
    killed.communicate()
    before = time.monotonic()
    message, _ = left.communicate(timeout=2 * TIMEOUT)
    assert left.returncode == 1
    assert time.monotonic() - before < TIMEOUT
    assert "Error" in message

    done = len(losses(cut))
    assert done >= 2
    epochs = max(done + 1, EPOCHS)
    ranks = start_ranks(start, f"--epochs={epochs}", f"--checkpoint={cut}", "--resume")
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert f"epoch {done + 1}:" in outputs[0]
    assert "epoch 1:" not in outputs[0]
    assert losses(cut)[:EPOCHS] == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_in_one_process(objective: str, tmp_path: Path) -> None:
    options = Namespace(objective=objective, epochs=2, seed=0, resume=False)
    first, second = train(options, checkpoint=tmp_path / "alone.pt")
    assert second < first - 50
    resumed = Namespace(**{**vars(options), "epochs": 3, "resume": True})
    assert train(resumed, checkpoint=tmp_path / "alone.pt")[:2] == [first, second]

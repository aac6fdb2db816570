"""Several processes with a share of the rows each train as one process with all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pyro_infovae._arrays.gathering import exchange, gather_rows, same_draws, world_size
from pyro_infovae._traces.gathered_rows import gather
from pyro_infovae.groups import Rows
from tests.pyro_infovae.distributed_programs import CASES
from tests.pyro_infovae.distributed_worker import Share, Trained, train

ROOT = Path(__file__).parents[2]
PROGRAM = """
from pathlib import Path
import torch._dynamo  # which optimisers import, here once for all processes
from torch.multiprocessing import start_processes
from tests.pyro_infovae.distributed_worker import main
given = {world}, Path({folder!r}), {names!r}
start_processes(main, given, nprocs={world}, start_method="fork")
"""
pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def run(world: int, folder: Path, names: list[str]) -> list[Any]:
    """What every process saved."""
    program = PROGRAM.format(world=world, folder=str(folder), names=names)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def distance(name: str, trained: Trained) -> float:
    """The greatest relative difference from one process, in losses, gradients and parameters."""
    alone = train(CASES[name], Share(0, 1, list(trained.offsets)), gather=False)
    pairs = [
        *zip(trained.losses, alone.losses, strict=True),
        *((trained.params[key], value) for key, value in alone.params.items()),
    ]
    for ours, theirs in zip(trained.grads, alone.grads, strict=True):
        pairs.extend((ours[key], value) for key, value in theirs.items())
    return max(float((x - y).abs().max() / (1 + y.abs().max())) for x, y in pairs)


@pytest.mark.parametrize(
    ("world", "names"),
    [
        (2, ["mmd", "infomax, masks, particles, all pairs"]),
        pytest.param(2, list(CASES), marks=pytest.mark.slow),
        pytest.param(4, list(CASES), marks=pytest.mark.slow),
    ],
    ids=["2, few", "2", "4"],
)
def test_ranks_train_as_one_process(world: int, names: list[str], tmp_path: Path) -> None:
    saved = run(world, tmp_path, names)
    first, apart, _, _ = saved[0]
    far = {name: distance(name, trained) for name, trained in first.items()}
    assert {name: off for name, off in far.items() if not off < 1e-10} == {}
    assert distance("mmd", apart) > 1e-3
    for others, _, _, _ in saved[1:]:
        for name, other in others.items():
            assert_close(other.params, first[name].params, rtol=0, atol=0)
    for rank, (_, _, told, gathered) in enumerate(saved):
        check_refusals(told, world)
        check_gathered(gathered, rank, world)


def check_refusals(told: dict[str, str], world: int) -> None:
    """Each rank is told the same, with what to do, which is accepted."""
    assert set(told) == {"rows", "features", "dtype", "plate", "whole"}
    rows = [4] + (world - 1) * [3]
    assert told["rows"] == (
        f"Expected as many rows of ['z'] on every rank; got {rows}: drop the last minibatch, or "
        "pad it and mask what is added"
    )
    for name, (here, there) in {
        "features": ("(2,)", "(3,)"),
        "dtype": ("float64", "float32"),
        "plate": ("'num_data': 24", "'num_data': 12"),
    }.items():
        beginning = "Expected the same latents, shapes and plate sizes on every rank; got {'rows'"
        assert told[name].startswith(beginning)
        assert here in told[name].split("on rank 0 and")[0]
        assert there in told[name].split("on rank 0 and")[1]
        assert told[name].endswith("on rank 1")
    assert told["whole"] == (
        f"Expected each of {world} ranks to hold a part of the data of ['z']; got plates whose 4 "
        "data are all in the rank's minibatch: pass pyro.plate the size of the whole data set, "
        "and the rank's rows as subsample="
    )


def check_gathered(gathered: dict[str, Any], rank: int, world: int) -> None:
    """Rows of two draws for two data per rank: first all first draws."""
    later = (world - 1) * [1.0, 1.0]
    assert gathered["weights"].tolist() == [1.0, 0.0, *later, 1.0, 1.0, *later]
    first_draws = torch.tensor([2 * rank, 2 * rank + 1])
    expected = torch.cat([first_draws, first_draws + 2 * world])[:, None].expand(4, 2)
    assert_close(gathered["gradient"], world * expected.double())
    outside = gathered["outside plates"]
    numbers = [torch.arange(8).reshape(4, 2) + 10 * other for other in range(world)]
    assert_close(outside.latents["z"], torch.cat(numbers).double())
    assert (outside.batch_size, outside.num_data) == (None, 1)
    for dtype, values in gathered["dtypes"].items():
        assert_close(values, torch.cat([each.T.to(dtype) for each in numbers]))


def test_without_a_process_group_nothing_changes() -> None:
    rows = Rows({"z": torch.ones(4, 2)}, weights=None, batch_size=4, num_data=4)
    assert gather(rows) is rows
    assert gather_rows(rows.values, 4).shape == (4, 2)
    assert (world_size(), exchange(7)) == (1, [7])
    state = torch.get_rng_state()
    with same_draws():
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CASES)
def test_to_gather_without_a_process_group_trains_alike(name: str) -> None:
    alone, gathering = (train(CASES[name], Share(0, 1), gather=gather) for gather in (False, True))
    assert_close(gathering.losses, alone.losses, rtol=0, atol=0)
    assert_close(gathering.params, alone.params, rtol=0, atol=0)

"""A step on a GPU: in single precision, under autocast, captured, distributed, and unwaited for.

Without one, the meta device stands in where no number is needed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_infovae.compile import Backend, CompiledSVI
from tests.pyro_infovae.networks import BFLOAT16, OBJECTIVES, Guide, Model, build, data, take_step

DEVICE, BACKEND = "cuda", "cpu:gloo,cuda:nccl"
EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed_pyro.py"
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def single_precision(clean_pyro: None) -> None:
    torch.set_default_dtype(torch.float32)


class NothingFromTheHost(TorchFunctionMode):
    """Refuses a tensor on a device that is made of one, or of numbers, on the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sent = any(tensor.device.type == "cpu" for tensor in read) or (
            func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and not read
        )
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        assert not sent or all(tensor.device.type == "cpu" for tensor in made), func
        return result


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_host_neither_reads_nor_sends(name: str) -> None:
    module, x = build(name).to("meta"), data("meta")
    with pyro.validation_enabled(False), NothingFromTheHost():
        module(x).backward()


@contextmanager
def drawn_on_the_host() -> Iterator[None]:
    """The same random numbers on every device."""
    randint = torch.randint

    def normal(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(shape, dtype=dtype).to(device)

    def integers(*args: Any, device: torch.device) -> Tensor:
        return randint(*args).to(device)

    with (
        mock.patch("torch.distributions.normal._standard_normal", normal),
        mock.patch("torch.randn_like", lambda like: normal(like.shape, like.dtype, like.device)),
        mock.patch("torch.randint", integers),
    ):
        yield


@gpu
@needs_gpu
class TestOnGPU:
    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_a_step_is_that_of_a_cpu(self, name: str) -> None:
        with drawn_on_the_host():
            expected = take_step(build(name), data())
            step = take_step(build(name).to(DEVICE), data(DEVICE))
        assert step.loss.device.type == DEVICE
        assert step.distance(expected) < 1e-3

    @pytest.mark.parametrize("raised", [True, False], ids=["raised", "as they are"])
    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_under_autocast(self, name: str, raised: bool) -> None:
        with drawn_on_the_host():
            expected = take_step(build(name).to(DEVICE), data(DEVICE))
            module = build(name, raised=raised).to(DEVICE)
            step = take_step(module, data(DEVICE), autocast=torch.bfloat16)
        assert 0 < step.distance(expected) < BFLOAT16

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_the_host_does_not_wait(self, name: str) -> None:
        module, x = build(name).to(DEVICE), data(DEVICE)
        with pyro.validation_enabled(False):
            module(x).backward()
            torch.cuda.set_sync_debug_mode("error")
            try:
                loss = module(x)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert loss.isfinite()

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_svi_with_a_default_device(self, name: str) -> None:
        pyro.clear_param_store()
        with torch.device(DEVICE):
            model, guide, objective = Model(raised=False), Guide(raised=False), OBJECTIVES[name]()
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), objective)
            losses = [svi.step(data(DEVICE)) for _ in range(50)]
        assert losses[-1] < losses[0]

    @pytest.mark.parametrize(
        ("name", "backend"),
        [*((name, None) for name in OBJECTIVES), ("unbiased", "inductor"), ("InfoMax", "inductor")],
    )
    def test_compiled_svi_takes_the_steps_of_svi(self, name: str, backend: Backend | None) -> None:
        def losses(svi: Callable[..., Any]) -> list[float]:
            pyro.clear_param_store()
            with torch.device(DEVICE):
                model, guide, loss = Model(raised=False), Guide(raised=False), OBJECTIVES[name]()
            pyro.set_rng_seed(3)
            stepping = svi(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
            return [stepping.step(data(DEVICE)) for _ in range(4)]

        compiled = losses(partial(CompiledSVI, backend=backend))
        assert compiled == pytest.approx(losses(SVI), rel=1e-4)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_distributed_by_nccl(self, name: str, tmp_path: Path) -> None:
        expected = take_step(build(name).to(DEVICE), data(DEVICE))
        dist.init_process_group(
            BACKEND, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
        )
        try:
            step = take_step(DistributedDataParallel(build(name).to(DEVICE)), data(DEVICE))
        finally:
            dist.destroy_process_group()
        assert step.distance(expected) < 1e-4


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_train_like_one(tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            EXAMPLE,
            "--simulate=2",
            "--epochs=3",
            f"--checkpoint={tmp_path / 'c.pt'}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines()[-3:]:
        _, alone, together = map(float, line.split())
        # The minibatches are the same and the noise is not: a few nats of hundreds.
        assert together == pytest.approx(alone, rel=0.01)

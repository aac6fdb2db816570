"""Training for a few steps by several processes, with shares of the same rows and noise."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_infovae._arrays.gathering import gather_rows
from pyro_infovae._traces.gathered_rows import gather
from pyro_infovae.groups import Rows
from tests.pyro_infovae.distributed_programs import CASES, DIM, Case

DATA, BATCH, STEPS = 24, 12, 3


@dataclass
class Share:
    """The share of one process: of the rows, and of the noise for them.

    Attributes:
        rank: which process.
        world: how many there are.
        offsets: the random integers that were drawn, or that are to be drawn where given.
    """

    rank: int
    world: int
    offsets: list[Tensor] = field(default_factory=list)
    _draws: int = 0

    @property
    def size(self) -> int:
        return BATCH // self.world

    def rows(self, rows: Tensor) -> Tensor:
        return rows[self.rank * self.size : (self.rank + 1) * self.size]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The share of numbers that are one draw for all processes."""
        self._draws += 1
        generator = torch.Generator().manual_seed(self._draws)
        if self.size not in shape:
            return torch.randn(shape, generator=generator, dtype=torch.float64)
        axis = list(shape).index(self.size)
        whole = [BATCH if dim == axis else size for dim, size in enumerate(shape)]
        numbers = torch.randn(whole, generator=generator, dtype=torch.float64)
        return numbers.narrow(axis, self.rank * self.size, self.size)

    @contextmanager
    def noise(self) -> Iterator[None]:
        replayed = iter(list(self.offsets))
        randint = torch.randint

        def integers(*args: Any, **kwargs: Any) -> Tensor:
            given = next(replayed, None)
            if given is None:
                given = randint(*args, **kwargs)
                self.offsets.append(given)
            return given

        with (
            mock.patch(
                "torch.distributions.normal._standard_normal",
                lambda shape, dtype, device: self.normal(shape),
            ),
            mock.patch("torch.randn_like", lambda like: self.normal(like.shape)),
            mock.patch("torch.randint", integers),
        ):
            yield


@dataclass
class Trained:
    """What a few steps gave: the mean over the processes of losses and gradients."""

    losses: list[Tensor] = field(default_factory=list)
    grads: list[dict[str, Tensor]] = field(default_factory=list)
    params: dict[str, Tensor] = field(default_factory=dict)
    offsets: list[Tensor] = field(default_factory=list)


def data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(DATA, DIM, generator=generator, dtype=torch.float64)


def minibatches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randperm(DATA, generator=generator)[:BATCH] for _ in range(STEPS)]


def train(case: Case, share: Share, *, gather: bool) -> Trained:
    """Take some steps on a share of the minibatches."""
    pyro.clear_param_store()
    torch.manual_seed(3)
    model, guide = case.programs()
    objective = case.objective(gather)
    torch.manual_seed(100 + share.rank)
    with share.noise():
        steps = _with_ddp if case.train == "ddp" else _with_svi
        trained = steps(objective, model, guide, share)
    trained.offsets = share.offsets
    return trained


def _with_ddp(objective: ELBO, model: nn.Module, guide: nn.Module, share: Share) -> Trained:
    module: nn.Module = objective(model, guide)
    trained, x = Trained(), data()
    with share.noise(), torch.no_grad():
        module(x, share.rows(minibatches()[0]))  # a flow makes its step sizes on a first call
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    wrapped = module if share.world == 1 else DistributedDataParallel(module)
    for rows in minibatches():
        optimiser.zero_grad()
        loss = wrapped(x, share.rows(rows))
        loss.backward()
        trained.losses.append(_mean(loss.detach(), share))
        trained.grads.append({n: p.grad.clone() for n, p in module.named_parameters()})
        optimiser.step()
    trained.params = {n: p.detach().clone() for n, p in module.named_parameters()}
    return trained


def _with_svi(objective: ELBO, model: nn.Module, guide: nn.Module, share: Share) -> Trained:
    trained, x = Trained(), data()
    optimiser = _AveragingAdam()
    svi = SVI(model, guide, optimiser, loss=objective)
    for rows in minibatches():
        loss = torch.tensor(svi.step(x, share.rows(rows)))
        trained.losses.append(_mean(loss, share))
        trained.grads.append(optimiser.averaged)
    loss = torch.tensor(svi.evaluate_loss(x, share.rows(rows)))
    trained.losses.append(_mean(loss, share))
    trained.params = {n: p.detach().clone() for n, p in pyro.get_param_store().items()}
    return trained


def _mean(loss: Tensor, share: Share) -> Tensor:
    if share.world > 1:
        torch.distributed.all_reduce(loss)
    return loss / share.world


class _AveragingAdam(pyro.optim.PyroOptim):
    """Adam on gradients averaged over the processes."""

    def __init__(self) -> None:
        super().__init__(torch.optim.Adam, {"lr": 1e-2})
        self.averaged: dict[str, Tensor] = {}

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        store = pyro.get_param_store()
        named = sorted((store.param_name(param), param) for param in params)
        for _, param in named:
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(param.grad)
                param.grad /= torch.distributed.get_world_size()
        self.averaged = {name: param.grad.clone() for name, param in named}
        super().__call__(params, *args, **kwargs)


def refusals(share: Share) -> dict[str, str]:
    """What ranks that disagree are told, and nothing where they do as they are told."""
    alike = Rows({"z": torch.ones(4, 2)}, weights=None, batch_size=4, num_data=24)
    first = share.rank == 0
    cases = {
        "rows": alike if first else Rows({"z": torch.ones(3, 2)}, None, 3, 24),
        "features": alike if first else replace(alike, latents={"z": torch.ones(4, 3)}),
        "dtype": alike if first else replace(alike, latents={"z": torch.ones(4, 2).float()}),
        "plate": alike if first else replace(alike, num_data=12),
        "whole": replace(alike, num_data=4),
        # What is recommended instead.
        "alike": alike,
        "dropped": Rows({"z": torch.ones(3, 2)}, None, 3, 24),
        "padded": alike if first else replace(alike, weights=(torch.arange(4) < 3).double()),
    }
    messages = {}
    for name, rows in cases.items():
        try:
            gather(rows)
        except ValueError as error:
            messages[name] = str(error)
    return messages


def gathered(share: Share) -> dict[str, Any]:
    """What ranks make of each other's rows."""
    numbers = torch.arange(8).reshape(4, 2) + 10 * share.rank
    mask = torch.tensor([True, False, True, True])
    rows = Rows({"z": numbers.double()}, None if share.rank else mask.double(), 2, 24)
    own = numbers.double().requires_grad_()
    everything = gather_rows(own, 2)
    (torch.arange(len(everything))[:, None] * everything).sum().backward()
    return {
        "weights": gather(rows).weights,
        "gradient": own.grad,
        "outside plates": gather(replace(rows, batch_size=None, num_data=1)),
        "dtypes": {
            dtype: gather_rows(numbers.T.to(dtype), 2)
            for dtype in (torch.bool, torch.int16, torch.bfloat16, torch.float32, torch.complex64)
        },
    }


def main(rank: int, world: int, folder: Path, names: Sequence[str]) -> None:
    """Train the cases, and save what they gave."""
    torch.set_default_dtype(torch.float64)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    trained = {name: train(CASES[name], Share(rank, world), gather=True) for name in names}
    apart = train(CASES["mmd"], Share(rank, world), gather=False)
    told = refusals(Share(rank, world))
    torch.save((trained, apart, told, gathered(Share(rank, world))), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()

"""Pyro's half: what its programs are written with, and how its objectives are tried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import pyro
import torch
from pyro import poutine

import pyro_infovae
from tests.halves import Case, Draws, GivenNumbers, Half, Step


class _Critic(torch.nn.Module):
    def __init__(self, score: Callable[..., Any], params: Mapping[str, Any]) -> None:
        super().__init__()
        self.score = score
        for name, value in params.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.score(dict(self.named_parameters()), x, z)


class PyroHalf(Half):
    """Losses and gradients as ``loss_and_grads`` leaves them in the param store."""

    library = pyro_infovae
    infer = pyro.infer
    dist = pyro.distributions
    xp = torch

    def sample(self, name: str, fn: Any, *, obs: Any = None) -> Any:
        return pyro.sample(name, fn, obs=obs)

    def param(self, name: str, value: Any, *, constraint: Any = None) -> Any:
        constraint = constraint or pyro.distributions.constraints.real
        return pyro.param(name, torch.tensor(value), constraint=constraint)

    def plate(
        self,
        name: str,
        size: int,
        *,
        dim: int = -1,
        batch: int | None = None,
        index: np.ndarray | None = None,
    ) -> AbstractContextManager[Any]:
        subsample = None if index is None else torch.as_tensor(index)
        return pyro.plate(name, size, subsample_size=batch, subsample=subsample, dim=dim)

    def mask(self, mask: np.ndarray | None) -> AbstractContextManager[Any]:
        if mask is None:
            return contextlib.nullcontext()
        return poutine.mask(mask=torch.as_tensor(mask))

    def critic(self, score: Callable[..., Any], params: Mapping[str, Any]) -> torch.nn.Module:
        return _Critic(score, params)

    def steps(
        self, objectives: Sequence[Any], case: Case, *, draws: Callable[[], Draws] | None = None
    ) -> list[Step]:
        return [self._step(objective, case, draws) for objective in objectives]

    def losses(self, objectives: Sequence[Any], case: Case, *, count: int) -> np.ndarray:
        return np.array([self._losses(objective, case, count) for objective in objectives])

    def losses_at(self, objective: Any, case: Case, noise: np.ndarray) -> np.ndarray:
        losses = []
        for numbers in noise:
            with _drawing(GivenNumbers(numbers)):
                losses.append(objective.loss(*case))
        return np.array(losses)

    def evaluate(self, objective: Any, case: Case) -> None:
        with pyro.validation_enabled(False):
            objective.loss_and_grads(*case)

    def _step(self, objective: Any, case: Case, draws: Callable[[], Draws] | None) -> Step:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        with contextlib.nullcontext() if draws is None else _drawing(draws()):
            loss = objective.loss_and_grads(*case)
        grads = {name: value.grad for name, value in pyro.get_param_store()._params.items()}
        return Step(loss, {name.replace("$$$", "."): grad.numpy() for name, grad in grads.items()})

    def _losses(self, objective: Any, case: Case, count: int) -> list[float]:
        losses = []
        with pyro.validation_enabled(False):
            for seed in range(count):
                pyro.set_rng_seed(seed)
                losses.append(objective.loss(*case))
        return losses


@contextlib.contextmanager
def _drawing(draws: Draws) -> Iterator[None]:
    def normal(shape: Sequence[int], dtype: torch.dtype, device: Any) -> torch.Tensor:
        return torch.as_tensor(draws.normal(shape))

    def randn_like(like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(draws.normal(like.shape))

    def randint(low: int, high: int, size: Sequence[int], **_: Any) -> torch.Tensor:
        return torch.as_tensor(draws.integers(low, high, size))

    with (
        mock.patch("torch.distributions.normal._standard_normal", normal),
        mock.patch("torch.randn_like", randn_like),
        mock.patch("torch.randint", randint),
    ):
        yield


PYRO = PyroHalf()

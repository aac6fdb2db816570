"""A program as other people write it, and what each objective is expected to make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tests.halves import Case

N = 64
"""The data of a program: as few as a critic takes without a warning."""

Settings: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Works:
    """The objective is the stock ELBO at zero weight, and training lowers its loss.

    Attributes:
        settings: what the objective is told beside its weights.
        otherwise: a pattern of the message without those settings, whose remedy they are.
        warns: a pattern of a warning that is meant.
        against: the stock ELBO, where it is not the program's.
    """

    settings: Settings = field(default_factory=dict)
    otherwise: str = ""
    warns: str = ""
    against: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Refused:
    """The objective refuses the program.

    Attributes:
        message: a pattern of what it says: the site and the remedy.
        why: the reason in a few words, for the table.
        settings: what the objective is told beside its weights.
    """

    message: str
    why: str
    settings: Settings = field(default_factory=dict)


Outcome: TypeAlias = Works | Refused


@dataclass(frozen=True, kw_only=True)
class Program:
    """A model and a guide in the manner of an example, with what is expected of them.

    Attributes:
        name: what the table calls it.
        like: the examples it is written after.
        make: makes it, with its data.
        stock: makes the ELBO that the default base is, or that ``base=`` is to be.
        needs_base: whether ``stock`` has to be passed as ``base=``.
        critic: the features of a datum and of its code.
        mmd: what ``TraceMMD_ELBO`` makes of it.
        infomax: what ``TraceInfoMax_ELBO`` makes of it.
        hamiltonian: what ``TraceHamiltonian_ELBO`` makes of it.
        half: the half that it is written for.
        lr: a learning rate that suits it.
        steps: the steps after which its loss has fallen beyond its noise.
        step_size: a step size of the flow that suits it.
    """

    name: str
    like: str
    make: Callable[[], Case]
    stock: Callable[[], Any]
    needs_base: bool = False
    critic: tuple[int, int] = (1, 1)
    mmd: Outcome
    infomax: Outcome
    hamiltonian: Outcome
    half: Literal["Pyro", "NumPyro"] = "Pyro"
    lr: float = 0.01
    steps: int = 8
    step_size: float = 0.02


def net(*widths: int) -> nn.Sequential:
    """A small network."""
    layers: list[nn.Module] = []
    for width, after in pairwise(widths):
        layers += [nn.Linear(width, after), nn.Softplus()]
    return nn.Sequential(*layers[:-1])


def normals(*shape: int, seed: int = 0) -> Tensor:
    """Normal data."""
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape)).to(
        torch.get_default_dtype()
    )


def bits(*shape: int, seed: int = 0) -> Tensor:
    """Binary data, in which the features of a datum go together."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(*shape[:-1], 1))
    return torch.as_tensor(rng.normal(size=shape) < 1.5 * level).to(torch.get_default_dtype())


def counts(*shape: int, seed: int = 0) -> Tensor:
    """Counts."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, 1.0, size=(*shape[:-1], 1)) * rng.gamma(2.0, 0.5, size=shape[-1:])
    return torch.as_tensor(rng.poisson(rates)).to(torch.get_default_dtype())

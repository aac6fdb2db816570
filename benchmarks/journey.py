"""How far a reader goes to follow one step: the files it visits, the moves from one to another.

``python -m benchmarks.journey`` prints both for ``TraceMMD_ELBO``, by itself and over a flow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor

import pyro_infovae
from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO

PACKAGE = Path(pyro_infovae.__file__ or "").parent


class Journey(NamedTuple):
    """What a step calls of the package.

    Attributes:
        files: the files that hold the functions, without repetition.
        functions: the number of different functions.
        moves: how often a call is in another file than the one before it.
    """

    files: list[str]
    functions: int
    moves: int


def follow(step: Callable[[], Any]) -> Journey:
    """Take a step, and note the calls of the package's functions in their order."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            calls.append((str(path.relative_to(PACKAGE)), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    files = [file for file, _ in calls]
    moves = sum(before != after for before, after in pairwise(files))
    return Journey(sorted(set(files)), len(set(calls)), moves)


def journey(loss: ELBO) -> Journey:
    """The journey of a step of a small autoencoder, after one that initialises it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss)
    x = torch.randn(64, 2)
    svi.step(x)
    return follow(lambda: svi.step(x))


def main() -> None:
    """Print the journeys."""
    for name, loss in {
        "TraceMMD_ELBO": TraceMMD_ELBO(),
        "TraceMMD_ELBO over TraceHamiltonian_ELBO": TraceMMD_ELBO(base=TraceHamiltonian_ELBO()),
    }.items():
        files, functions, moves = journey(loss)
        print(
            f"{name}: {len(files)} files, {functions} functions, {moves} moves", *files, sep="\n  "
        )


if __name__ == "__main__":
    main()

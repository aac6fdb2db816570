"""What a program is, and the two frameworks that it may be written for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Protocol


class Case(NamedTuple):
    """A model and a guide at their initial values, and the arguments of both.

    Attributes:
        model: the model.
        guide: the guide.
        args: the arguments of both.
        modules: those of their networks that behave otherwise once they are trained.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...] = ()
    modules: Sequence[Any] = ()


class Training(NamedTuple):
    """What a training ends with.

    Attributes:
        bound: of the objective that it was trained with.
        unflowed: the stock bound.
        seconds: a step's.
        shrunk: the step, from 1, after which the flow's steps were first scaled down; 0 if none.
        warned: the step in which harm was first told of, or known where a step cannot tell; or 0.
    """

    bound: float
    unflowed: float
    seconds: float
    shrunk: int
    warned: int


class Framework(Protocol):
    """Pyro or NumPyro, which have the same names, and what programs are trained with.

    Attributes:
        name: of the framework.
        ppl: ``pyro`` or ``numpyro``.
        xp: the module of its arrays.
    """

    name: str
    ppl: ModuleType
    xp: ModuleType

    def trained(
        self,
        program: Program,
        settings: dict[str, Any] | None,
        *,
        seeds: Sequence[int],
        steps: int,
        draws: int,
    ) -> list[Training]:
        """Train a program from its start by Adam, a seed after another, and estimate its bounds.

        Args:
            program: the program.
            settings: those of ``TraceHamiltonian_ELBO``; None for the stock ``Trace_ELBO``.
            seeds: of the start and of all draws of each training.
            steps: of training.
            draws: those that a bound is the mean of.
        """


@dataclass(frozen=True)
class Program:
    """A program, its optimiser, and where it can be written.

    Attributes:
        name: what the tables call it.
        make: makes it for a framework, in which every call starts afresh.
        lr: Adam's learning rate at first.
        decay: by how much it is multiplied until the end.
        frameworks: those that it is written for.
        is_cheap: whether the settings are varied in it.
    """

    name: str
    make: Callable[[Framework], Case]
    lr: float = 0.05
    decay: float = 0.1
    frameworks: tuple[str, ...] = ("Pyro", "NumPyro")
    is_cheap: bool = False

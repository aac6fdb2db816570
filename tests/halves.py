"""What a program of either half is written with, and what an objective makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model and a guide, both without arguments."""

    model: Callable[[], None]
    guide: Callable[[], None]


class Step(NamedTuple):
    """A loss and its gradient in the unconstrained values of the parameters."""

    loss: float
    grads: Arrays


class Draws(Protocol):
    """What a run is given instead of random numbers, draw by draw."""

    def normal(self, shape: Sequence[int]) -> Any:
        """Standard normal numbers."""

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Any:
        """Integers from low up to and without high."""


class OrderedDraws:
    """Draws that depend on their order and their number alone, not on who draws."""

    def __init__(self) -> None:
        self._seed = 0

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        return self._next().normal(size=tuple(shape))

    def integers(self, low: int, high: int, shape: Sequence[int]) -> np.ndarray:
        return self._next().integers(low, high, size=tuple(shape))

    def _next(self) -> np.random.Generator:
        self._seed += 1
        return np.random.default_rng(self._seed)


class GivenNumbers:
    """Draws of one normal number each, all given beforehand."""

    def __init__(self, numbers: Any) -> None:
        self._numbers: Iterator[Any] = iter(numbers)

    def normal(self, shape: Sequence[int]) -> Any:
        return next(self._numbers).reshape(tuple(shape))

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Any:
        raise AssertionError("only normal numbers are given")


class Half(ABC):
    """Pyro's or NumPyro's half of the library, with the framework that it belongs to.

    Attributes:
        library: ``pyro_infovae`` or its twin.
        infer: the framework's own objectives.
        dist: its distributions.
        xp: its arrays' module.
    """

    library: ModuleType
    infer: ModuleType
    dist: ModuleType
    xp: ModuleType

    @abstractmethod
    def sample(self, name: str, fn: Any, *, obs: Any = None) -> Any: ...

    @abstractmethod
    def param(self, name: str, value: Any, *, constraint: Any = None) -> Any: ...

    @abstractmethod
    def plate(
        self,
        name: str,
        size: int,
        *,
        dim: int = -1,
        batch: int | None = None,
        index: np.ndarray | None = None,
    ) -> AbstractContextManager[Any]:
        """A plate of the data in ``index``, of ``batch`` random ones, or of all."""

    @abstractmethod
    def mask(self, mask: np.ndarray | None) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def critic(self, score: Callable[..., Any], params: Mapping[str, Any]) -> Any:
        """The critic ``score(params, x, z)``, to be trained from the given parameters."""

    @abstractmethod
    def steps(
        self, objectives: Sequence[Any], case: Case, *, draws: Callable[[], Draws] | None = None
    ) -> list[Step]:
        """A step of each objective, from the same parameters and with the same seed or draws."""

    @abstractmethod
    def losses(self, objectives: Sequence[Any], case: Case, *, count: int) -> np.ndarray:
        """The losses (objectives, count) of several seeds, the same for each objective."""

    @abstractmethod
    def losses_at(self, objective: Any, case: Case, noise: np.ndarray) -> np.ndarray:
        """The losses (count,) of runs whose every normal draw is a number of ``noise``'s row."""

    @abstractmethod
    def evaluate(self, objective: Any, case: Case) -> None:
        """One evaluation, for its errors."""

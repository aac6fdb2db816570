"""What a program of either half is written with, and what an objective makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model and a guide, and the arguments of both."""

    model: Callable[..., None]
    guide: Callable[..., None]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


class Step(NamedTuple):
    """A loss and its gradient in the unconstrained values of the parameters."""

    loss: float
    grads: Arrays


class Trained(NamedTuple):
    """The losses of some steps, and the parameters after them."""

    losses: np.ndarray
    params: Arrays


class Slope(NamedTuple):
    """A gradient along a direction, and the slope of the loss there by finite differences."""

    gradient: float
    slope: float


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


class NumbersOfShape:
    """Draws that depend on their shape alone, not on how often or in which order they are made."""

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        size = int(np.prod(shape))
        return np.sin(1 + 1.7 * np.arange(size) ** 1.3).reshape(tuple(shape))

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Any:
        raise AssertionError("only normal numbers are given")


class GivenArrays:
    """Draws that are all given beforehand."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self._arrays = iter(arrays)

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        return next(self._arrays).reshape(tuple(shape))

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Any:
        raise AssertionError("only normal numbers are given")


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

    Runs with the same count have the same seeds, whatever the objective.

    Attributes:
        library: ``pyro_infovae`` or its twin.
        infer: the framework's own objectives.
        dist: its distributions.
        xp: its arrays' module.
        compiles: whether each objective is compiled for each program, which takes a second.
    """

    library: ModuleType
    infer: ModuleType
    dist: ModuleType
    xp: ModuleType
    compiles: bool

    @abstractmethod
    def precision(self, *, double: bool) -> AbstractContextManager[None]:
        """What floats are in a block."""

    @abstractmethod
    def unvalidated(self) -> AbstractContextManager[None]:
        """A block in which values may be outside of their support."""

    @abstractmethod
    def sample(
        self, name: str, fn: Any, *, obs: Any = None, obs_mask: Any = None, infer: Any = None
    ) -> Any: ...

    @abstractmethod
    def param(self, name: str, value: Any, *, constraint: Any = None) -> Any: ...

    @abstractmethod
    def factor(self, name: str, value: Any) -> None: ...

    @abstractmethod
    def deterministic(self, name: str, value: Any, *, event_dim: int = 0) -> None: ...

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
    def mask(self, mask: Any) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def scale(self, scale: float) -> AbstractContextManager[Any]: ...

    @property
    @abstractmethod
    def handlers(self) -> Any:
        """The effect handlers: ``condition``, ``reparam`` and ``block`` are in both."""

    @abstractmethod
    def init_to(self, values: Mapping[str, np.ndarray]) -> Any:
        """How automatic guides are told where to start."""

    @abstractmethod
    def prepared(self, guide: Any, *args: Any) -> Any:
        """An automatic guide after its first call, in which it gets to know the model."""

    def auto(self, kind: str, model: Callable[..., None], *args: Any, **settings: Any) -> Any:
        return self.prepared(getattr(self.infer.autoguide, kind)(model, **settings), *args)

    @abstractmethod
    def critic(
        self,
        score: Callable[..., Any],
        params: Mapping[str, Any],
        *,
        pairs: Callable[..., Any] | None = None,
    ) -> Any:
        """The critic ``score(params, x, z)``, to be trained from the given parameters.

        All pairs are scored one by one, or by ``pairs(params, x, z)``.
        """

    @abstractmethod
    def steps(
        self, objectives: Sequence[Any], case: Case, *, draws: Callable[[], Draws] | None = None
    ) -> list[Step]:
        """A step of each objective, from the same parameters and with the same seed or draws."""

    @abstractmethod
    def slopes(self, objective: Any, case: Case) -> dict[str, Slope]:
        """Of each parameter, along a direction that tells its entries apart."""

    @abstractmethod
    def minimised(
        self, objective: Any, case: Case, *, draws: Callable[[], Draws]
    ) -> tuple[float, Arrays]:
        """The least loss, from the parameters that the programs start with, and where it is."""

    @abstractmethod
    def losses(self, objectives: Sequence[Any], case: Case, *, count: int) -> np.ndarray:
        """The losses (objectives, count) of several seeds, the same for each objective."""

    @abstractmethod
    def losses_at(self, objective: Any, case: Case, noise: np.ndarray) -> np.ndarray:
        """The losses (count,) of runs whose every normal draw is a number of ``noise``'s row."""

    @abstractmethod
    def seen(
        self,
        log: list[Any],
        objective: Any,
        case: Case,
        *,
        count: int = 1,
        draws: Callable[[], Draws] | None = None,
    ) -> list[Any]:
        """What is in the log after each run, as arrays of NumPy."""

    @abstractmethod
    def draw(self, guide: Any, case: Case, draws: Callable[[], Draws]) -> Arrays:
        """The values of the latents of a guide."""

    @abstractmethod
    def log_weights(self, elbo: Any, case: Case, *, draws: int) -> np.ndarray:
        """Log importance weights (draws,) of the whole model, under the refined guide."""

    @abstractmethod
    def trained(
        self, objective: Any, case: Case, *, steps: int, lr: float = 1e-2, decay: float = 1.0
    ) -> Trained:
        """Some steps of Adam, by SVI."""

    @abstractmethod
    def all_scores(self, objective: Any, case: Case, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The scores (rows, rows) of an objective's critic, one pair at a time."""

    @abstractmethod
    def evaluate(self, objective: Any, case: Case) -> None:
        """One evaluation, for its errors and for what it runs."""

    def loss(self, objective: Any, case: Case) -> float:
        return float(self.losses([objective], case, count=1)[0, 0])

    def penalties(self, objective: Any, case: Case, *, count: int) -> np.ndarray:
        """The loss (count,) without what the base says of the same draws."""
        ours, base = self.losses([objective, objective.base], case, count=count)
        return ours - base

    def above(self, base: Any, objectives: Sequence[Any], case: Case) -> np.ndarray:
        """The losses (objectives,) above that of a base of them all, of one seed."""
        plain, *values = self.losses([base, *objectives], case, count=1)[:, 0]
        return np.array(values) - plain

    def penalty(self, objective: Any, case: Case) -> float:
        return float(self.penalties(objective, case, count=1)[0])

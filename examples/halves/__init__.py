"""What is trained, whichever half trains it: `with_pyro` and `with_numpyro` have the same names."""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

Program = Callable[..., Any]


class Trained:
    """A model and a guide, and the objective that trains them.

    Attributes:
        model: The model.
        guide: The guide.
        objective: The loss that is descended.
        diagnostics: The half's module of that name.
    """

    model: Program
    guide: Program
    objective: Any
    diagnostics: ModuleType

    def ask(
        self,
        question: Callable[..., Any],
        *args: Any,
        model: Program | None = None,
        guide: Program | None = None,
        **options: Any,
    ) -> Any:
        """What a function of the half says of model and guide, or of others in their place."""
        return question(model or self.model, guide or self.guide, *args, **options)

    def evidence(self, *args: Any, after_flow: bool = True, **options: Any) -> Any:
        """Estimates of log p(x), from the guide, after its flow where it has one."""
        question, elbo = self.diagnostics.log_evidence, self.flow if after_flow else None
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the tables say it
            return self.ask(question, *args, elbo=elbo, **options)

    def log_weights(self, count: int, **programs: Program) -> np.ndarray:
        """Log importance weights of draws: by default of the trained guide after its flow."""
        return numbers(self.evidence(num_samples=count, **programs).log_weights)

    @property
    def flow(self) -> Any:
        """The objective, or its base, that moves the guide's draws; None where there is no flow."""
        objective = getattr(self.objective, "base", self.objective)
        return objective if hasattr(objective, "refine") else None

    def flow_settings(self) -> tuple[float, float]:
        """Mean step size and first inverse temperature of the flow: 0 and 1 where there is none."""
        if self.flow is None:
            return 0.0, 1.0
        learned = self.learned_flow()
        return numbers(learned.step_size).mean().item(), numbers(learned.inverse_temperatures)[0]

    def learned_flow(self) -> Any:
        """What the flow has learned."""
        return self.flow.flow()


def numbers(values: Any) -> np.ndarray:
    """A copy of an array of either half, in double precision."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values).astype(float)


def draw_layers(rng: np.random.Generator, *sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels of shape (inputs, outputs) and biases, uniform within 1/√(inputs) as in PyTorch."""
    drawn = [
        rng.uniform(-1, 1, (inputs + 1, outputs)) / math.sqrt(inputs)
        for inputs, outputs in pairwise(sizes)
    ]
    return [(weights[:-1], weights[-1]) for weights in drawn]

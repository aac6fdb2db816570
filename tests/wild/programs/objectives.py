"""The objectives that every program is tried with, at zero weight and in training."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpyro.infer
import pyro.infer

import numpyro_backend
import pyro_infovae
from tests.wild.programs.program import Outcome, Program, Works


class Objective(ABC):
    """An objective of either half, with and without a weight."""

    name: ClassVar[str]
    field: ClassVar[str]
    takes_base: ClassVar[bool] = True

    def outcome(self, program: Program) -> Outcome:
        return getattr(program, self.field)

    def neutral(self, program: Program) -> Any:
        """With weights, or steps, that make it the stock ELBO."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "alpha=0.0, lambd=1.0 give the MMD a weight of")
            return self.make(program, self.zero(program), self.settings(program))

    def typical(self, program: Program, *, without: bool = False) -> Any:
        """With weights that tell it from the stock ELBO; ``without`` the program's settings."""
        return self.make(program, self.some(program), {} if without else self.settings(program))

    def settings(self, program: Program) -> dict[str, Any]:
        return dict(self.outcome(program).settings)

    def make(self, program: Program, weights: dict[str, Any], settings: dict[str, Any]) -> Any:
        library = pyro_infovae if program.half == "Pyro" else numpyro_backend
        return getattr(library, self.name)(**self.with_base(program, settings), **weights)

    def with_base(self, program: Program, settings: dict[str, Any]) -> dict[str, Any]:
        if not (program.needs_base and self.takes_base):
            return settings
        particles = {k: v for k, v in settings.items() if k == "num_particles"}
        others = {k: v for k, v in settings.items() if k != "num_particles"}
        return {**others, "base": program.stock(**particles)}

    def stock(self, program: Program) -> Any:
        """The ELBO that it is at zero weight."""
        outcome, settings = self.outcome(program), self.settings(program)
        assert isinstance(outcome, Works)
        particles = {k: v for k, v in settings.items() if k == "num_particles"}
        return (outcome.against or program.stock)(**particles)

    @abstractmethod
    def zero(self, program: Program) -> dict[str, Any]:
        """The settings that make it the stock ELBO."""

    @abstractmethod
    def some(self, program: Program) -> dict[str, Any]:
        """Settings that tell it from the stock ELBO."""


class MMD(Objective):
    name, field = "TraceMMD_ELBO", "mmd"

    def zero(self, program: Program) -> dict[str, Any]:
        return {"alpha": 0.0, "lambd": 1.0}

    def some(self, program: Program) -> dict[str, Any]:
        return {"alpha": 0.0, "lambd": 2.0}


class InfoMax(Objective):
    name, field = "TraceInfoMax_ELBO", "infomax"

    def zero(self, program: Program) -> dict[str, Any]:
        return {**self.critic(program), "alpha": 0.0}

    def some(self, program: Program) -> dict[str, Any]:
        return {**self.critic(program), "alpha": 0.1}

    def critic(self, program: Program) -> dict[str, Any]:
        library = pyro_infovae if program.half == "Pyro" else numpyro_backend
        return {"critic": library.ConcatCritic(*program.critic, hidden=(8,))}


class Hamiltonian(Objective):
    name, field, takes_base = "TraceHamiltonian_ELBO", "hamiltonian", False

    def zero(self, program: Program) -> dict[str, Any]:
        return {"num_steps": 2, "step_size": 0.0, "learn": False}

    def some(self, program: Program) -> dict[str, Any]:
        return {"num_steps": 2, "step_size": program.step_size}

    def stock(self, program: Program) -> Any:
        """The densities of the draws are compared, so that no KL is in closed form."""
        outcome = self.outcome(program)
        assert isinstance(outcome, Works)
        stock = program.stock()
        if isinstance(stock, pyro.infer.TraceMeanField_ELBO):
            stock = pyro.infer.Trace_ELBO()
        if isinstance(stock, numpyro.infer.TraceMeanField_ELBO):
            stock = numpyro.infer.Trace_ELBO()
        return outcome.against() if outcome.against else stock


OBJECTIVES = [MMD(), InfoMax(), Hamiltonian()]

"""How the programs of each half are evaluated and trained."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
import pyro

import numpyro_backend
from tests.halves import Case
from tests.numpyro_backend.half import NUMPYRO
from tests.numpyro_backend.runs import jit

SEEDS = range(2)


class Training(NamedTuple):
    """The losses of the steps, and those of some seeds before and after."""

    before: np.ndarray
    steps: np.ndarray
    after: np.ndarray


class InPyro:
    @staticmethod
    def double() -> AbstractContextManager[None]:
        """Tests run so."""
        return nullcontext()

    @staticmethod
    def losses(elbo: Any, case: Case) -> np.ndarray:
        run = case.model, case.guide, *case.args
        elbo.loss(*run)  # in which it finds out how the plates are nested
        losses = []
        for seed in SEEDS:
            pyro.set_rng_seed(seed)
            losses.append(elbo.loss(*run))
        return np.array(losses)

    @classmethod
    def trained(cls, elbo: Any, case: Case, *, lr: float, steps: int) -> Training:
        before = cls.losses(elbo, case)
        svi = pyro.infer.SVI(case.model, case.guide, pyro.optim.Adam({"lr": lr}), elbo)
        losses = [svi.step(*case.args) for _ in range(steps)]
        return Training(before, np.array(losses), cls.losses(elbo, case))


class InNumPyro:
    """Losses are those of updates, for evaluations know of no mutable state."""

    @staticmethod
    def double() -> AbstractContextManager[None]:
        return NUMPYRO.precision(double=True)

    @classmethod
    def losses(cls, elbo: Any, case: Case) -> np.ndarray:
        return cls.trained(elbo, case, lr=0.0, steps=0).before

    @staticmethod
    def trained(elbo: Any, case: Case, *, lr: float, steps: int) -> Training:
        svi = numpyro_backend.SVI(case.model, case.guide, numpyro.optim.Adam(lr), loss=elbo)
        update = jit(lambda state: svi.update(state, *case.args))

        def losses(state: Any) -> np.ndarray:
            keys = (jax.random.key(seed) for seed in SEEDS)
            return np.array([float(update(state._replace(rng_key=key))[1]) for key in keys])

        state = svi.init(jax.random.key(0), *case.args)
        before, of_steps = losses(state), []
        for _ in range(steps):
            state, loss = update(state)
            of_steps.append(float(loss))
        training = Training(before, np.array(of_steps), losses(state))
        jax.effects_barrier()  # after which all warnings have been raised
        return training


HALVES = {"Pyro": InPyro, "NumPyro": InNumPyro}

"""How the programs of each half are evaluated and trained."""

from __future__ import annotations

from collections.abc import Sequence
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

SEEDS = range(3)


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
    def losses(elbo: Any, case: Case, seeds: Sequence[int] = SEEDS) -> np.ndarray:
        run = case.model, case.guide, *case.args
        elbo.loss(*run)  # in which it finds out how the plates are nested
        losses = []
        for seed in seeds:
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
    @staticmethod
    def double() -> AbstractContextManager[None]:
        return NUMPYRO.precision(double=True)

    @classmethod
    def losses(cls, elbo: Any, case: Case, seeds: Sequence[int] = SEEDS) -> np.ndarray:
        svi = numpyro_backend.SVI(case.model, case.guide, numpyro.optim.Adam(0.0), loss=elbo)
        return cls._losses(svi, case, svi.init(jax.random.key(0), *case.args), seeds)

    @classmethod
    def trained(cls, elbo: Any, case: Case, *, lr: float, steps: int) -> Training:
        svi = numpyro_backend.SVI(case.model, case.guide, numpyro.optim.Adam(lr), loss=elbo)
        state = svi.init(jax.random.key(0), *case.args)
        before = cls._losses(svi, case, state)
        update = jit(lambda state: svi.update(state, *case.args))
        losses = []
        for _ in range(steps):
            state, loss = update(state)
            losses.append(float(loss))
        return Training(before, np.array(losses), cls._losses(svi, case, state))

    @staticmethod
    def _losses(svi: Any, case: Case, state: Any, seeds: Sequence[int] = SEEDS) -> np.ndarray:
        evaluate = jit(lambda state: svi.evaluate(state, *case.args))
        keys = (jax.random.key(seed) for seed in seeds)
        losses = [float(evaluate(state._replace(rng_key=key))) for key in keys]
        jax.effects_barrier()  # after which all warnings have been raised
        return np.array(losses)


HALVES = {"Pyro": InPyro, "NumPyro": InNumPyro}

"""Training in Pyro, and the bounds that it ends with."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pyro
import pyro.infer.autoguide
import torch
from pyro.infer import SVI, Trace_ELBO

from benchmarks.flow_harm.program import Case, Program, Training
from pyro_infovae import TraceHamiltonian_ELBO

HARM = "the flow's bound is more than a nat"


class WithPyro:
    """A step at a time, float32."""

    name = "Pyro"
    ppl: ModuleType = pyro
    xp: ModuleType = torch

    def trained(
        self,
        program: Program,
        settings: dict[str, Any] | None,
        *,
        seeds: Sequence[int],
        steps: int,
        draws: int,
    ) -> list[Training]:
        """Train a program from its start by Adam, a seed after another, and estimate its bounds."""
        with pyro.validation_enabled(False):
            return [self._trained(program, settings, seed, steps, draws) for seed in seeds]

    def _trained(
        self,
        program: Program,
        settings: dict[str, Any] | None,
        seed: int,
        steps: int,
        draws: int,
    ) -> Training:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        case, stock = program.make(self), Trace_ELBO()
        elbo: Any = stock if settings is None else TraceHamiltonian_ELBO(**settings)
        gamma = program.decay ** (1 / steps)
        adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": program.lr}, "gamma": gamma}
        optim = pyro.optim.ExponentialLR(adam)
        svi = SVI(case.model, case.guide, optim, loss=elbo)
        shrunk, warned, times = 0, 0, []
        for step in range(1, steps + 1):
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                svi.step(*case.args)
            optim.step()
            times.append(time.perf_counter() - start)
            if any(HARM in str(warning.message) for warning in caught):
                warned = warned or step
            if settings is not None and elbo.flow.terms()["step_scale"] < 1:
                shrunk = shrunk or step
        for module in case.modules:
            module.eval()
        unflowed = _bound(stock, case, draws)
        bound = unflowed if settings is None else _bound(elbo, case, draws)
        return Training(bound, unflowed, sorted(times)[steps // 2], shrunk, warned)


def _bound(elbo: Any, case: Case, draws: int) -> float:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        losses = [elbo.loss(case.model, case.guide, *case.args) for _ in range(draws)]
    return -sum(losses) / draws

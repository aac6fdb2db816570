"""The remedies of the tables of what the objectives refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tests import refusals, refused_settings
from tests.questions.asking import Asking
from tests.refusals import RefusedProgram
from tests.refused_settings import RefusedSettings
from tests.shared_programs import critic
from tests.wild.remedies.following import Action, add, listed_as

NEEDED: dict[str, Callable[[Asking], dict[str, Any]]] = {
    "TraceMMD_ELBO": lambda half: {},
    "TraceInfoMax_ELBO": lambda half: {"critic": critic(half)},
    "TraceHamiltonian_ELBO": lambda half: {"num_steps": 3},
}
"""What each objective cannot be without."""

SETTINGS = {
    "TraceMMD_ELBO": refused_settings.MMD_SETTINGS,
    "TraceInfoMax_ELBO": refused_settings.INFOMAX_SETTINGS,
    "TraceHamiltonian_ELBO": refused_settings.HAMILTONIAN_SETTINGS,
}
PROGRAMS = {
    "TraceMMD_ELBO": refusals.MMD_PROGRAMS,
    "TraceInfoMax_ELBO": refusals.INFOMAX_PROGRAMS,
    "TraceHamiltonian_ELBO": refusals.HAMILTONIAN_PROGRAMS,
}


def _made(half: Asking, name: str, settings: dict[str, Any]) -> Any:
    return getattr(half.library, name)(**{**NEEDED[name](half), **settings})


def _settings(half: Asking, *, name: str, refused: RefusedSettings) -> Sequence[Action]:
    all_settings = (refused.settings, *refused.legal)
    return [partial(_made, half, name, settings) for settings in all_settings]


def _programs(half: Asking, *, name: str, refused: RefusedProgram) -> Sequence[Action]:
    def evaluating(program: Any, settings: Any) -> Action:
        return lambda: half.evaluate(_made(half, name, settings(half)), program(half))

    return [
        evaluating(refused.program, refused.settings),
        *(evaluating(r.program or refused.program, r.settings) for r in refused.remedies),
    ]


for name, table in SETTINGS.items():
    for case, settings in table.items():
        actions = partial(_settings, name=name, refused=settings)
        add(f"{name}, {case}", [listed_as(settings.message)], actions, quick=("pyro", "numpyro"))
for name, programs in PROGRAMS.items():
    for case, program in programs.items():
        if program.remedies:
            actions = partial(_programs, name=name, refused=program)
            add(f"{name} of {case}", [listed_as(program.message)], actions)

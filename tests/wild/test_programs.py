"""Programs as other people write them: what each objective is at zero weight, and how it trains."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.wild.programs import autoencoders, enumerated, in_numpyro, regressions, sequences
from tests.wild.programs.objectives import OBJECTIVES, Objective
from tests.wild.programs.program import Outcome, Program, Refused, Works
from tests.wild.programs.running import HALVES

PROGRAMS = [
    *autoencoders.PROGRAMS,
    *sequences.PROGRAMS,
    *enumerated.PROGRAMS,
    *regressions.PROGRAMS,
    *in_numpyro.PROGRAMS,
]


def expected(kind: type[Any]) -> Any:
    """The programs and objectives of which an outcome is expected."""
    cases = [
        pytest.param(program, objective, id=f"{program.half} {program.name}-{objective.name}")
        for program in PROGRAMS
        for objective in OBJECTIVES
        if isinstance(objective.outcome(program), kind)
    ]
    return pytest.mark.parametrize(("program", "objective"), cases)


@expected(Works)
def test_zero_weight_is_the_stock_elbo(program: Program, objective: Objective) -> None:
    half = HALVES[program.half]
    with half.double(), warned(objective.outcome(program)):
        case = program.make()
        stock = half.losses(objective.stock(program), case)
        assert np.isfinite(stock).all()
        ours = half.losses(objective.neutral(program), case)
    np.testing.assert_allclose(ours, stock, rtol=1e-9)


@expected(Works)
def test_training_lowers_the_loss(program: Program, objective: Objective) -> None:
    half = HALVES[program.half]
    with half.double(), warned(objective.outcome(program)):
        elbo, case = objective.typical(program), program.make()
        training = half.trained(elbo, case, lr=program.lr, steps=program.steps)
    assert np.isfinite(training.steps).all()
    assert training.after.mean() < training.before.mean()


@expected(Refused)
def test_is_refused(program: Program, objective: Objective) -> None:
    message = refusal(program, objective.typical(program))
    assert re.search(objective.outcome(program).message, message), message


@expected(Works)
def test_remedy_is_needed(program: Program, objective: Objective) -> None:
    pattern = objective.outcome(program).otherwise
    if pattern:
        message = refusal(program, objective.typical(program, without=True))
        assert re.search(pattern, message), message


def refusal(program: Program, elbo: Any) -> str:
    half = HALVES[program.half]
    with half.double(), pytest.raises((ValueError, NotImplementedError)) as raised:
        half.losses(elbo, program.make())
    return str(raised.value)


@contextmanager
def warned(outcome: Outcome) -> Iterator[None]:
    """Nothing but the warning that is meant is raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        assert outcome.warns, text
        assert re.search(outcome.warns, text), text

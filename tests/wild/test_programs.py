"""Programs as other people write them: what each objective is at zero weight, and how it trains."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.wild.programs.objectives import OBJECTIVES, Objective
from tests.wild.programs.program import Outcome, Program, Refused, Works
from tests.wild.programs.running import HALVES
from tests.wild.programs.table import PATH, PROGRAMS, table

QUICK = ("VAE", "deep Markov model, padded, a mask per step", "eight schools, AutoNormal")
"""The programs that are trained in a quick run; NumPyro's are compiled in a slow one alone."""


def expected(is_wanted: Callable[[Outcome], bool], *, quick: Collection[str] = ()) -> Any:
    """The programs and objectives of which an outcome is expected, the quick ones of a test."""
    cases = []
    for program, objective in itertools.product(PROGRAMS, OBJECTIVES):
        if is_wanted(objective.outcome(program)):
            is_quick = program.half == "Pyro" and (not quick or program.name in quick)
            marks = [] if is_quick else [pytest.mark.slow]
            name = f"{program.half} {program.name}-{objective.name}"
            cases.append(pytest.param(program, objective, id=name, marks=marks))
    return pytest.mark.parametrize(("program", "objective"), cases)


def works(outcome: Outcome) -> bool:
    return isinstance(outcome, Works)


def is_refused(outcome: Outcome) -> bool:
    return isinstance(outcome, Refused)


def has_a_remedy(outcome: Outcome) -> bool:
    return isinstance(outcome, Works) and bool(outcome.otherwise)


@expected(works)
def test_zero_weight_is_the_stock_elbo(program: Program, objective: Objective) -> None:
    half = HALVES[program.half]
    with half.double(), warned(objective.outcome(program)):
        case = program.make()
        stock = half.losses(objective.stock(program), case)
        assert np.isfinite(stock).all()
        ours = half.losses(objective.neutral(program), case)
    np.testing.assert_allclose(ours, stock, rtol=1e-9)


@expected(works, quick=QUICK)
def test_training_lowers_the_loss(program: Program, objective: Objective) -> None:
    half = HALVES[program.half]
    with half.double(), warned(objective.outcome(program)):
        elbo, case = objective.typical(program), program.make()
        training = half.trained(elbo, case, lr=program.lr, steps=program.steps)
    assert np.isfinite(training.steps).all()
    assert training.after.mean() < training.before.mean()


@expected(is_refused)
def test_is_refused(program: Program, objective: Objective) -> None:
    message = refusal(program, objective.typical(program))
    assert re.search(objective.outcome(program).message, message), message


@expected(has_a_remedy)
def test_is_refused_with_the_remedy(program: Program, objective: Objective) -> None:
    """That works, as the tests above say."""
    message = refusal(program, objective.typical(program, without=True))
    assert re.search(objective.outcome(program).otherwise, message), message


def test_table_says_what_is_expected() -> None:
    """Written by ``python -m tests.wild.programs.table``."""
    assert PATH.read_text(encoding="utf-8") == table()


def test_there_are_programs_of_both_halves_and_of_all_kinds() -> None:
    assert len({program.like for program in PROGRAMS}) > 20
    assert {program.half for program in PROGRAMS} == {"Pyro", "NumPyro"}
    outcomes = [o.outcome(p) for p, o in itertools.product(PROGRAMS, OBJECTIVES)]
    assert sum(map(works, outcomes)) > 2 * sum(map(is_refused, outcomes))


def refusal(program: Program, elbo: Any) -> str:
    half = HALVES[program.half]
    with half.double(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is warned of on the way is not the matter
        case = program.make()
        with pytest.raises((ValueError, NotImplementedError)) as raised:
            half.losses(elbo, case)
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

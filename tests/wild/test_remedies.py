"""What a message of the page *Errors and what to do* recommends is taken, and works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.questions.asking import HALVES, Asking
from tests.test_errors_page import LISTED
from tests.wild.remedies import (  # noqa: F401  register what they follow
    compiled,
    diagnostics,
    estimates,
    latents,
    tables,
)
from tests.wild.remedies.following import REMEDIES, is_said, listed, said_by, take

BY_SEVERAL_PROCESSES = (
    "Expected as many rows of … on every rank",
    "Expected the same latents, shapes and plate sizes on every rank",
    "ranks to hold a part of the data of",
)
"""The messages whose remedies are taken in ``tests/pyro_infovae/test_distributed.py``."""

CASES = [
    pytest.param(half, name, id=f"{half}-{name}", marks=_slow)
    for name, remedy in REMEDIES.items()
    for half in remedy.halves
    for _slow in [[] if half in remedy.quick else [pytest.mark.slow]]
]


@pytest.fixture
def half(request: pytest.FixtureRequest) -> Iterator[Asking]:
    half = HALVES[request.param]
    with half.precision(double=True):
        yield half


# Of the frameworks, about what a program may leave out.
@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide but not model")
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
# Tiny programs have few rows; that more are enough is followed by itself.
@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
@pytest.mark.parametrize(("half", "name"), CASES, indirect=["half"])
def test_what_is_recommended_works(half: Asking, name: str) -> None:
    """Without any other error, or warning."""
    met, *followed = REMEDIES[name].actions(half)
    said = said_by(met)
    for message in REMEDIES[name].messages:
        assert is_said(message, said), said
    assert followed
    for action in followed:
        take(action)


def test_every_message_is_followed() -> None:
    followed = {message for remedy in REMEDIES.values() for message in remedy.messages}
    assert set(LISTED) - followed == set(map(listed, BY_SEVERAL_PROCESSES))

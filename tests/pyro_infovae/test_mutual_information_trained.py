"""Trained critics, judged on fresh data whose mutual information is known."""

import pytest

from benchmarks.mutual_information import fresh_estimate, train_critic

TOLERANCES = {2.0: 0.25, 4.0: 0.6}
STEPS = 300
QUICK = [("nwj", 4.0, True), ("infonce", 4.0, False)]
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
    for name in ("nwj", "js", "infonce")
    for truth in TOLERANCES
    for case in [(name, truth, False), (name, truth, True)]
]


@pytest.mark.parametrize(("name", "truth", "cubic"), CASES)
def test_trained_critics_come_near_the_truth_from_below(
    name: str, truth: float, cubic: bool
) -> None:
    critic = train_critic(name, truth, cubic=cubic, seed=0, steps=STEPS)
    mean, error = fresh_estimate(name, critic, truth, cubic=cubic)
    assert abs(mean - truth) < TOLERANCES[truth]
    assert mean < truth + 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("cubic", [False, True])
def test_nwj_stays_below_six_nats(cubic: bool) -> None:
    critic = train_critic("nwj", 6.0, cubic=cubic, seed=0, steps=STEPS)
    mean, error = fresh_estimate("nwj", critic, 6.0, cubic=cubic)
    assert error < 0.2
    assert 4.0 < mean < 6.0 + 4 * error

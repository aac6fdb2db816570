"""What a critic is shown where rows, or entries of the data, are masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from tests.halves import Case, Half
from tests.objectives.alone import in_both, slow_in_numpyro
from tests.objectives.programs import masked
from tests.shared_programs import MASK, PARAMS, X, critic

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
ENTRIES = MASK[:, None] & (np.arange(36).reshape(12, 3) % 4 != 1)
CODES = X @ PARAMS["encoder"]


def encoded(half: Half, x: np.ndarray = X, *, rows: Any = None, entries: Any = None) -> Case:
    """A guide that all but knows the code; masks of the data's rows, or of their entries."""
    seen = half.xp.asarray(X)
    data = half.xp.asarray(x)

    def model() -> None:
        with half.plate("data", 12):
            z = half.sample("z", half.dist.Normal(half.xp.zeros((12, 2)), 1.0).to_event(1))
            loc = half.xp.tanh(z) @ half.param("decoder", PARAMS["decoder"])
            likelihood = half.dist.Normal(loc, 0.7)
            if entries is not None:
                likelihood = likelihood.mask(half.xp.asarray(entries))
            with half.mask(rows):
                half.sample("x", likelihood.to_event(1), obs=data)

    def guide() -> None:
        loc = seen @ half.param("encoder", PARAMS["encoder"])
        with half.plate("data", 12):
            half.sample("z", half.dist.Normal(loc, 1e-9).to_event(1))

    return Case(model, guide)


def information(scores: np.ndarray, others: np.ndarray) -> float:
    """InfoNCE of rows that have some others' codes (rows, negatives) for negatives."""
    rows = range(len(scores))
    terms = [logsumexp([scores[i, i], *scores[i, others[i]]]) for i in rows]
    return float(np.mean(np.diagonal(scores) - terms) + np.log(1 + others.shape[1]))


def every_other(num: int) -> np.ndarray:
    return np.array([[j for j in range(num) if j != i] for i in range(num)])


def infonce(half: Half, negatives: str) -> Any:
    settings = {"bound": "infonce", "negatives": negatives, "base": half.infer.Trace_ELBO()}
    return half.library.TraceInfoMax_ELBO(critic(half), **settings)


@slow_in_numpyro
def test_negatives_are_rolled_among_the_rows_that_count(half: Half) -> None:
    case, objective = masked(half, encoded(half), MASK), infonce(half, "shift")
    values = half.penalties(objective, case, count=25) / -12
    scores, num = half.all_scores(objective, case, X[MASK], CODES[MASK]), MASK.sum()
    rolled = [
        information(scores, (np.arange(num)[:, None] + offset) % num) for offset in range(1, num)
    ]
    distance = np.abs(values[:, None] - rolled)
    np.testing.assert_allclose(distance.min(1), 0.0, atol=1e-6)
    assert len(set(distance.argmin(1))) > num / 2


@pytest.mark.filterwarnings("ignore:Fewer than two rows")
@slow_in_numpyro
def test_one_row_that_counts_tells_nothing(half: Half) -> None:
    case, objective = masked(half, encoded(half), np.arange(12) == 5), infonce(half, "shift")
    assert half.penalty(objective, case) == pytest.approx(0.0, abs=1e-12)


@in_both("masks", ["rows", "entries"], quick=["entries"])
def test_the_datas_own_mask_is_heeded(half: Half, masks: str) -> None:
    mask = {"rows": MASK} if masks == "rows" else {"entries": ENTRIES}
    kept = np.where(MASK[:, None] if masks == "rows" else ENTRIES, X, 0.0)
    objective = infonce(half, "all")
    case = encoded(half, np.where(kept == 0, 50.0, X), **mask)
    value = half.penalty(objective, case) / -12
    scores = half.all_scores(objective, case, kept[MASK], CODES[MASK])
    assert value == pytest.approx(information(scores, every_other(MASK.sum())), abs=1e-6)


@in_both("masks", ["rows", "entries"], quick=[])
def test_nan_below_a_mask_never_reaches_the_critic(half: Half, masks: str) -> None:
    mask = {"rows": MASK} if masks == "rows" else {"entries": ENTRIES}
    kept = np.broadcast_to(MASK[:, None] if masks == "rows" else ENTRIES, X.shape)
    with half.unvalidated():
        (want,), (got,) = (
            half.steps([infonce(half, "shift")], encoded(half, np.where(kept, X, fill), **mask))
            for fill in (0.0, np.nan)
        )
    assert got.loss == pytest.approx(want.loss, rel=1e-12)
    critics = [name for name in want.grads if name.startswith("critic.")]
    assert critics
    # Pyro's own likelihood has no gradient where masked data are nan; the critic's has.
    for name in want.grads if half.compiles else critics:
        np.testing.assert_allclose(got.grads[name], want.grads[name], rtol=1e-10)
        assert np.abs(want.grads[name]).max() > 0


def test_a_regularizer_sees_zeros_below_a_mask(half: Half) -> None:
    log: list[Any] = []

    def keep(rows: Any) -> Any:
        log.append(rows.data["x"])
        return 0.0 * rows.values.sum()

    objective = half.library.TraceMMD_ELBO(0.0, 2.0, regularizer=keep)
    case = encoded(half, np.where(ENTRIES, X, np.nan), entries=ENTRIES)
    ((seen,),) = half.seen(log, objective, case)
    np.testing.assert_array_equal(seen, np.where(ENTRIES, X, 0.0))

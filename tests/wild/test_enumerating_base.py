"""``TraceEnum_ELBO`` as a base in both halves: the rows of a latent weigh as the guide says."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.elbo_suite import assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_numpyro
from tests.refusals import says

X = np.random.default_rng(0).normal(size=6)
CENTRES = np.array([-1.0, 0.0, 2.0])


def mixture(
    half: Half, *, in_guide: bool = True, data: np.ndarray = X, mask: np.ndarray | None = None
) -> Case:
    """y, z | y and x | z; the guide draws y, or leaves it for the model to sum out."""
    x, centres = half.xp.asarray(data), half.xp.asarray(CENTRES)
    enumerated = {"enumerate": "parallel"}

    def model() -> None:
        with half.plate("data", 6), half.mask(mask):
            infer = {} if in_guide else enumerated
            y = half.sample(
                "y", half.dist.Categorical(logits=0 * x[:, None] + centres), infer=infer
            )
            z = half.sample("z", half.dist.Normal(half.param("spread", 0.5) * centres[y], 1.0))
            half.sample("x", half.dist.Normal(z, 0.7), obs=x)

    def guide() -> None:
        weight = half.param("weight", 0.6)
        with half.plate("data", 6), half.mask(mask):
            loc = weight * x
            if in_guide:
                q = half.dist.Categorical(logits=weight * x[:, None] * centres)
                loc = loc + 0.3 * centres[half.sample("y", q, infer=enumerated)]
            half.sample("z", half.dist.Normal(loc, 0.4))

    return Case(model, guide)


def enum(half: Half) -> Any:
    return half.infer.TraceEnum_ELBO(max_plate_nesting=1)


def mean_kernel(p: np.ndarray, q: np.ndarray, variance: float) -> float:
    """E exp(-(u - v)² / 2) between normals of locations p and q (datum, value), all data."""
    probability = softmax(0.6 * X[:, None] * CENTRES, -1)
    total = weights = 0.0
    for i, j, a, b in product(range(6), range(6), range(3), range(3)):
        weight = probability[i, a] * probability[j, b]
        gap = p[i, a] - q[j, b]
        total += weight * math.exp(-0.5 * gap**2 / variance) / math.sqrt(variance)
        weights += weight
    return total / weights


def test_rows_are_weighted_by_the_guide(half: Half) -> None:
    objective = half.library.TraceMMD_ELBO(
        0.0, 3.0, half.library.RBF(1.0), estimator="closed_form", base=enum(half)
    )
    q, p = 0.6 * X[:, None] + 0.3 * CENTRES, 0.5 * np.tile(CENTRES, (6, 1))
    expected = (
        mean_kernel(q, q, 1 + 2 * 0.4**2)
        + mean_kernel(p, p, 3.0)
        - 2 * mean_kernel(q, p, 2 + 0.4**2)
    )
    assert half.penalty(objective, mixture(half)) == pytest.approx(6 * 2 * expected, rel=1e-9)


@in_both("in_guide", [True, False], quick=[False])
def test_without_a_penalty_it_is_the_stock_elbo(half: Half, in_guide: bool) -> None:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        ours = half.library.TraceMMD_ELBO(lambd=1.0, base=enum(half))
    steps = half.steps([ours, enum(half)], mixture(half, in_guide=in_guide))
    assert_same_step(*steps, own_parameters=set())


def test_masked_rows_of_a_latent_whose_prior_is_summed_out(half: Half) -> None:
    mask = np.array([True, True, False, True, True, False])
    elbo = half.library.TraceMMD_ELBO(0.0, 3.0, half.library.RBF(1.0), base=enum(half))

    def penalty(data: np.ndarray, mask: np.ndarray | None) -> float:
        return half.penalty(elbo, mixture(half, in_guide=False, data=data, mask=mask))

    others = np.where(mask, X, 9.0)
    assert penalty(others, mask) == pytest.approx(penalty(X, mask), rel=1e-12)
    assert penalty(others, None) != pytest.approx(penalty(X, None), rel=0.1)


def test_the_kl_of_a_latent_whose_prior_is_summed_out(half: Half) -> None:
    case = mixture(half, in_guide=False)
    elbo = half.library.TraceMMD_ELBO
    assert says(lambda: half.evaluate(elbo(0.5, base=enum(half)), case)) == (
        "The KL of 'z' cannot be weighted by 0.5: its prior depends on 'y', which is summed out in "
        "the model; keep the weight at 1 (alpha=0 or beta=1), or draw 'y' in the guide"
    )
    half.evaluate(elbo(0.0, base=enum(half)), case)
    half.evaluate(elbo(0.5, base=enum(half)), mixture(half))


@in_numpyro
def test_what_is_missing_is_named(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numpyro_backend._traces.enumeration.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"funsor.*: pip install 'pyro-infovae\[enum\]'"):
        half.library.TraceMMD_ELBO(base=enum(half))
    half.library.TraceMMD_ELBO(base=half.infer.TraceGraph_ELBO())

"""Two latents around a discrete one that the guide enumerates, as in models of single cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.special import softmax

from tests.elbo_suite import LOOPED, ONE, VECTORISED, assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_pyro, slow_in_numpyro
from tests.objectives.statistics import averages_to

X = np.random.default_rng(0).normal(size=8)
CENTRES = np.array([-1.5, 0.0, 2.0])
PARTICLES: dict[str, dict[str, Any]] = {"one": ONE, "loop": LOOPED, "vector": VECTORISED}


def scanvi(half: Half, *, one_hot: bool = False) -> Case:
    """z1 ~ N(0, 1), y, z2 | z1, y and x | z2; the guide draws z2 | x, y | x and z1 | z2, y."""
    x, centres = half.xp.asarray(X)[:, None], half.xp.asarray(CENTRES)
    family = half.dist.OneHotCategorical if one_hot else half.dist.Categorical

    def centre(y: Any) -> Any:
        return (y @ centres if one_hot else centres[y])[..., None]

    def model() -> None:
        with half.plate("data", 8):
            z1 = half.sample("z1", half.dist.Normal(0 * x, 1.0).to_event(1))
            y = half.sample("y", family(logits=0 * x * centres))
            # Of one shape, as a network of both side by side needs them.
            joint = half.xp.concatenate([z1, half.xp.broadcast_to(centre(y), z1.shape)], -1)
            z2 = half.sample("z2", half.dist.Normal(joint.sum(-1)[..., None], 0.5).to_event(1))
            half.sample("x", half.dist.Normal(z2, 1.0).to_event(1), obs=x)

    def guide() -> None:
        weight = half.param("weight", 0.7)
        with half.plate("data", 8):
            z2 = half.sample("z2", half.dist.Normal(weight * x, 0.4).to_event(1))
            y = half.sample("y", family(logits=x * centres), infer={"enumerate": "parallel"})
            loc = 0.5 * (weight * x - centre(y)) + 0.25 * (z2 - weight * x)
            half.sample("z1", half.dist.Normal(loc, 0.6).to_event(1))

    return Case(model, guide)


def enum(half: Half, **particles: Any) -> Any:
    return half.infer.TraceEnum_ELBO(max_plate_nesting=1, **particles)


class Joint(NamedTuple):
    """The normal distribution of (z1, z2) of a datum and a value of y."""

    mean: np.ndarray
    covariance: np.ndarray
    weight: float


def joints(draw: Callable[[float, float], tuple[list[float], list[list[float]]]]) -> list[Joint]:
    """By datum and value of y, weighted by q(y | x), in the order of (datum, value)."""
    q = softmax(X[:, None] * CENTRES, -1)
    return [
        Joint(*map(np.array, draw(X[i], CENTRES[v])), q[i, v])
        for i, v in product(range(8), range(3))
    ]


def guides(x: float, centre: float) -> tuple[list[float], list[list[float]]]:
    shared = 0.25 * 0.4**2
    covariance = [[0.6**2 + 0.25 * shared, shared], [shared, 0.4**2]]
    return [0.5 * (0.7 * x - centre), 0.7 * x], covariance


def models(x: float, centre: float) -> tuple[list[float], list[list[float]]]:
    return [0.0, centre], [[1.0, 1.0], [1.0, 1.25]]


def mean_kernel(rows: list[Joint], columns: list[Joint]) -> float:
    """The weighted mean of E exp(-|u - v|² / 2) over the pairs of different data."""
    total = weights = 0.0
    for (i, u), (j, v) in product(enumerate(rows), enumerate(columns)):
        if i // 3 != j // 3:
            covariance, gap = u.covariance + v.covariance + np.eye(2), u.mean - v.mean
            kernel = math.exp(-0.5 * gap @ np.linalg.solve(covariance, gap))
            weight = u.weight * v.weight
            total += weight * kernel / math.sqrt(np.linalg.det(covariance))
            weights += weight
    return total / weights


def expected_penalty() -> float:
    q, p = joints(guides), joints(models)
    inner = mean_kernel(q, q) + mean_kernel(p, p)
    return 8 * (inner - 2 * mean_kernel(q, p))


@slow_in_numpyro
def test_the_prior_is_drawn_in_the_shapes_of_the_scored_run(half: Half) -> None:
    base = enum(half, **VECTORISED)
    objective = half.library.TraceMMD_ELBO(0.0, 2.0, half.library.RBF(1.0), base=base)
    assert averages_to(half.penalties(objective, scanvi(half), count=25), expected_penalty())


@in_pyro
def test_values_that_are_one_hot(half: Half) -> None:
    """NumPyro enumerates indices alone."""
    objective = half.library.TraceMMD_ELBO(0.0, 2.0, half.library.RBF(1.0), base=enum(half))
    case = scanvi(half, one_hot=True)
    assert averages_to(half.penalties(objective, case, count=25), expected_penalty())


@in_both("name", PARTICLES, quick=["one"])
def test_without_a_penalty_it_is_the_stock_elbo(half: Half, name: str) -> None:
    particles = PARTICLES[name]
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        ours = half.library.TraceMMD_ELBO(lambd=1.0, base=enum(half, **particles))
    steps = half.steps([ours, enum(half, **particles)], scanvi(half))
    assert_same_step(*steps, own_parameters=set())

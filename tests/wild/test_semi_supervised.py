"""Two latents around a discrete one that the guide enumerates, as in models of single cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from scipy.special import softmax

from pyro_infovae import RBF, TraceMMD_ELBO
from tests.elbo_suite import LOOPED, ONE, VECTORISED, assert_same_step
from tests.halves import Case
from tests.objectives.statistics import averages_to
from tests.pyro_infovae.half import PYRO

X = np.random.default_rng(0).normal(size=8)
CENTRES = np.array([-1.5, 0.0, 2.0])


def scanvi(*, one_hot: bool = False) -> Case:
    """z1 ~ N(0, 1), y, z2 | z1, y and x | z2; the guide draws z2 | x, y | x and z1 | z2, y."""
    x = torch.as_tensor(X)[:, None]
    family = pyro.distributions.OneHotCategorical if one_hot else pyro.distributions.Categorical
    centres = torch.as_tensor(CENTRES)
    normal = pyro.distributions.Normal

    def centre(y: torch.Tensor) -> torch.Tensor:
        return (y @ centres if one_hot else centres[y])[..., None]

    def model() -> None:
        with pyro.plate("data", 8):
            z1 = pyro.sample("z1", normal(torch.zeros(1), 1.0).to_event(1))
            y = pyro.sample("y", family(torch.ones(3) / 3))
            # Of one shape, as a network of both side by side needs them.
            joint = torch.cat([z1, centre(y).expand(*z1.shape[:-1], 1)], -1)
            z2 = pyro.sample("z2", normal(joint.sum(-1, keepdim=True), 0.5).to_event(1))
            pyro.sample("x", normal(z2, 1.0).to_event(1), obs=x)

    def guide() -> None:
        weight = pyro.param("weight", torch.tensor(0.7))
        infer = {"enumerate": "parallel"}
        with pyro.plate("data", 8):
            z2 = pyro.sample("z2", normal(weight * x, 0.4).to_event(1))
            y = pyro.sample("y", family(logits=x * centres), infer=infer)
            loc = 0.5 * (weight * x - centre(y))
            pyro.sample("z1", normal(loc + 0.25 * (z2 - weight * x), 0.6).to_event(1))

    return Case(model, guide)


def enum(**particles: Any) -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1, **particles)


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


def mean_kernel(rows: list[Joint], columns: list[Joint], *, same_datum: bool) -> float:
    """The weighted mean of E exp(-|u - v|² / 2) over the pairs of two samples."""
    total = weights = 0.0
    for (i, u), (j, v) in product(enumerate(rows), enumerate(columns)):
        if same_datum or i // 3 != j // 3:
            covariance, gap = u.covariance + v.covariance + np.eye(2), u.mean - v.mean
            kernel = math.exp(-0.5 * gap @ np.linalg.solve(covariance, gap))
            weight = u.weight * v.weight
            total += weight * kernel / math.sqrt(np.linalg.det(covariance))
            weights += weight
    return total / weights


def expected_penalty() -> float:
    q, p = joints(guides), joints(models)
    inner = mean_kernel(q, q, same_datum=False) + mean_kernel(p, p, same_datum=False)
    return 8 * (inner - 2 * mean_kernel(q, p, same_datum=True))


@pytest.mark.parametrize("one_hot", [False, True], ids=["index", "one-hot"])
def test_the_prior_is_drawn_in_the_shapes_of_the_scored_run(one_hot: bool) -> None:
    particles = VECTORISED if one_hot else LOOPED
    objective = TraceMMD_ELBO(0.0, 2.0, RBF(1.0), base=enum(**particles))
    penalties = PYRO.penalties(objective, scanvi(one_hot=one_hot), count=25)
    assert averages_to(penalties, expected_penalty())


@pytest.mark.parametrize("particles", [ONE, LOOPED, VECTORISED], ids=["one", "loop", "vector"])
def test_without_a_penalty_it_is_the_stock_elbo(particles: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        ours = TraceMMD_ELBO(lambd=1.0, base=enum(**particles))
    steps = PYRO.steps([ours, enum(**particles)], scanvi())
    assert_same_step(*steps, own_parameters=set())

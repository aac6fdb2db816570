"""Scores of joint and marginal rows: those of the critic, pair by pair, and no row twice."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from numpyro_backend.critics import ConcatCritic, SeparableCritic, is_projecting, score_all_pairs
from numpyro_backend.negatives import SCORERS

PARTICLES, DATA = 3, 5

pytestmark = pytest.mark.usefixtures("quick_double_precision", "strict_ranks")


class Tempered(SeparableCritic):
    """Its own apply, and what it inherits says something else."""

    def apply(self, params: Any, x: Array, z: Array) -> Array:
        return super().apply(params, x, z) / 7


class Bounded(ConcatCritic):
    def apply(self, params: Any, x: Array, z: Array) -> Array:
        return jnp.tanh(super().apply(params, x, z))


class Counting:
    def __init__(self) -> None:
        self.rows = 0

    def init(self, rng_key: Array) -> Array:
        return jax.random.normal(rng_key, (4, 3))

    def apply(self, params: Array, x: Array) -> Array:
        self.rows += len(x)
        return x.reshape(len(x), -1) @ params


@pytest.mark.parametrize("negatives", SCORERS)
@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic, Tempered, Bounded])
def test_scores_are_the_critics_own(family: Any, negatives: str) -> None:
    critic = family(4, 3, hidden=(6,))
    params = critic.init(jax.random.key(0))
    numbers = np.random.default_rng(0)
    x, z = numbers.normal(size=(PARTICLES, DATA, 2, 2)), numbers.normal(size=(PARTICLES, DATA, 3))
    key = jax.random.key(1)

    def scores(params: Any, z: Array) -> tuple[Array, ...]:
        return SCORERS[negatives](key, critic.bind(params), jnp.asarray(x), z)

    joint, marginal, others = jax.jit(scores)(params, z)
    assert (np.asarray(others) % DATA != np.arange(DATA)[:, None]).all()
    particles = np.arange(PARTICLES)[:, None, None]
    data = np.arange(DATA)[:, None]

    def pairs(params: Any, z: Array) -> tuple[Array, Array]:
        def score(x: Array, z: Array) -> Array:
            return critic.apply(params, x[None], z[None])[0]

        each = jax.vmap(score)
        own = each(x.reshape(-1, 2, 2), z.reshape(-1, 3)).reshape(joint.shape)
        rows = np.broadcast_to(x[particles, data], (*others.shape, 2, 2)).reshape(-1, 2, 2)
        other = each(rows, z[particles, others].reshape(-1, 3)).reshape(others.shape)
        return own, other

    weights = [numbers.normal(size=array.shape) for array in (joint, marginal)]

    def total(function: Any, params: Any, z: Array) -> Array:
        return sum((w * s).sum() for w, s in zip(weights, function(params, z)[:2], strict=True))

    for got, want in zip((joint, marginal), pairs(params, z), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    got, want = (
        jax.jit(jax.grad(lambda p, z, f=function: total(f, p, z), (0, 1)))(params, z)
        for function in (scores, pairs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), got, want)


@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic])
def test_encoders_see_each_datum_once(family: Any) -> None:
    encoder = Counting()
    critic = family(3, 3, x_encoder=encoder)
    bound = critic.bind(critic.init(jax.random.key(0)))
    key = jax.random.key(1)
    SCORERS["shift"](key, bound, jnp.zeros((1, DATA, 2, 2)), jnp.zeros((1, DATA, 3)))
    assert encoder.rows == DATA


def test_a_subclass_with_its_own_way_to_score_all_pairs_keeps_it() -> None:
    class Both(Tempered):
        def all_pairs(self, params: Any, x: Array, z: Array) -> Array:
            return super().all_pairs(params, x, z) / 7

    critic = Both(4, 3)
    bound = critic.bind(critic.init(jax.random.key(0)))
    assert not is_projecting(bound)
    x, z = (np.random.default_rng(i).normal(size=(5 + i, 4 - i)) for i in (0, 1))
    np.testing.assert_allclose(score_all_pairs(bound, x, z), bound.all_pairs(x, z), rtol=1e-12)

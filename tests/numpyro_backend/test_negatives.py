"""Scores of joint and marginal rows: those of the critic, pair by pair, and no row twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from numpyro_backend._arrays.negatives import SCORERS
from numpyro_backend.critics import ConcatCritic, SeparableCritic, is_projecting, score_all_pairs

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


def random_params(critic: Any) -> Any:
    """Parameters like those of critic.init, in less time."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(critic.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.3), shapes)


QUICK = [
    (ConcatCritic, "shift"),
    (SeparableCritic, "all"),
    (Tempered, "shift"),
    (Bounded, "all"),
]
SCORED = [
    pytest.param(
        family, negatives, marks=[] if (family, negatives) in QUICK else [pytest.mark.slow]
    )
    for family in (ConcatCritic, SeparableCritic, Tempered, Bounded)
    for negatives in SCORERS
]


@pytest.mark.parametrize(("family", "negatives"), SCORED)
def test_scores_are_the_critics_own(family: Any, negatives: str) -> None:
    critic = family(4, 3, hidden=(6,))
    params = random_params(critic)
    numbers = np.random.default_rng(0)
    x, z = numbers.normal(size=(PARTICLES, DATA, 2, 2)), numbers.normal(size=(PARTICLES, DATA, 3))
    key = jax.random.key(1)

    def scores(params: Any, z: Array) -> Any:
        joint, marginal, others = SCORERS[negatives](key, critic.bind(params), jnp.asarray(x), z)
        return (joint, marginal), others

    shapes, _ = jax.eval_shape(scores, params, z)
    weights = tuple(numbers.normal(size=each.shape) for each in shapes)

    def with_gradients(function: Any) -> Any:
        @jax.jit
        def both(params: Any, z: Array) -> Any:
            values, pull, others = jax.vjp(function, params, z, has_aux=True)
            return (values, pull(weights)), others

        return both(params, z)

    got, others = with_gradients(scores)
    others = np.asarray(others)
    assert (others % DATA != np.arange(DATA)[:, None]).all()
    particles = np.arange(PARTICLES)[:, None, None]
    data = np.arange(DATA)[:, None]

    def pairs(params: Any, z: Array) -> Any:
        def score(x: Array, z: Array) -> Array:
            return critic.apply(params, x[None], z[None])[0]

        each = jax.vmap(score)
        own = each(x.reshape(-1, 2, 2), z.reshape(-1, 3)).reshape(shapes[0].shape)
        rows = np.broadcast_to(x[particles, data], (*others.shape, 2, 2)).reshape(-1, 2, 2)
        other = each(rows, z[particles, others].reshape(-1, 3)).reshape(others.shape)
        return (own, other), others

    want, _ = with_gradients(pairs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), got[0], want[0])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10), got[1], want[1])


@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic])
def test_encoders_see_each_datum_once(family: Any) -> None:
    encoder = Counting()
    critic = family(3, 3, x_encoder=encoder)
    bound = critic.bind(random_params(critic))
    key = jax.random.key(1)
    x, z = jnp.zeros((1, DATA, 2, 2)), jnp.zeros((1, DATA, 3))
    jax.eval_shape(lambda: SCORERS["shift"](key, bound, x, z))
    assert encoder.rows == DATA


def test_a_subclass_with_its_own_way_to_score_all_pairs_keeps_it() -> None:
    class Both(Tempered):
        def all_pairs(self, params: Any, x: Array, z: Array) -> Array:
            return super().all_pairs(params, x, z) / 7

    critic = Both(4, 3)
    bound = critic.bind(random_params(critic))
    assert not is_projecting(bound)
    x, z = (np.random.default_rng(i).normal(size=(5 + i, 4 - i)) for i in (0, 1))
    np.testing.assert_allclose(score_all_pairs(bound, x, z), bound.all_pairs(x, z), rtol=1e-12)

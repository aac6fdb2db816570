# SPDX-License-Identifier: MIT
r"""Critic scores of joint rows, each datum with its own code, and of marginal ones, with others'.

Codes z come as (particles, data, features), data x as (particles, data, \*event). A negative is a
code of another datum of the same particle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Shaped

from numpyro_backend.critics import Critic, check_scores, is_projecting, score_all_pairs
from numpyro_backend.mutual_information import Bound, MutualInformationEstimate

LARGE = 2**31 - 1
"""So large that its remainders by a number of data are all but equally likely."""


class PairScores(NamedTuple):
    """Scores of every datum with its own code, and with the codes ``others`` of its particle."""

    joint: Float[Array, "particles data"]
    marginal: Float[Array, "particles data negatives"]
    others: Int[Array, "particles data negatives"]


Scorer: TypeAlias = Callable[[Array, Critic, Array, Array, Array | None], PairScores]


def score_shifted(
    rng_key: Key[Array, ""],
    critic: Critic,
    x: Shaped[Array, " particles data *event"],
    z: Float[Array, "particles data features"],
    weights: Float[Array, "particles data"] | None = None,
) -> PairScores:
    """Scores against the codes rolled by a random offset, so that no datum meets its own.

    Data of weight 0 are left out of the roll.
    """
    particles, batch_size = z.shape[:2]
    if weights is None:
        offset = jax.random.randint(rng_key, (particles, 1), 1, batch_size)
        others = (jnp.arange(batch_size)[None] + offset) % batch_size
    else:
        others = _rolled_among_counted(rng_key, weights > 0)
    own = jnp.broadcast_to(jnp.arange(batch_size), others.shape)
    joint, marginal = _score_choices(critic, x, z, jnp.stack([own, others]))
    return PairScores(joint, marginal[..., None], others[..., None])


def score_all(
    rng_key: Key[Array, ""],
    critic: Critic,
    x: Shaped[Array, " particles data *event"],
    z: Float[Array, "particles data features"],
    weights: Float[Array, "particles data"] | None = None,
) -> PairScores:
    """Scores against the codes of all other data, whatever their weights; the key is not used."""
    particles, batch_size = z.shape[:2]
    pairs = jax.lax.map(lambda block: score_all_pairs(critic, *block), (x, z))
    data = jnp.arange(batch_size)
    absent = data[None, :-1] + (data[None, :-1] >= data[:, None])
    others = jnp.broadcast_to(absent, (particles, *absent.shape))
    own = jnp.diagonal(pairs, axis1=1, axis2=2)
    return PairScores(own, jnp.take_along_axis(pairs, others, axis=2), others)


SCORERS: Mapping[str, Scorer] = {"shift": score_shifted, "all": score_all}
"""Ways to choose the negatives, by name."""


def by_particle(
    rows: Shaped[Array, " rows *event"], *, batch_size: int
) -> Shaped[Array, " particles data *event"]:
    """Rows of several particles, by particle and datum."""
    return rows.reshape(-1, batch_size, *rows.shape[1:])


def bound_information(
    bound: Bound,
    scores: PairScores,
    weights: Float[Array, "particles data"] | None = None,
) -> MutualInformationEstimate:
    """The bound on the scores of all particles, pooled.

    Args:
        bound: one of :mod:`numpyro_backend.mutual_information`.
        scores: the scores of joint and marginal rows.
        weights: how much every code counts, as a datum's own and as a negative: 0 where it is
            masked.
    """
    joint, marginal, others = scores
    per_row = (joint.size, -1)
    if weights is None:
        return bound(joint.reshape(-1), marginal.reshape(per_row))
    negative = jax.vmap(lambda weights, others: weights[others])(weights, others)
    return bound(
        joint.reshape(-1),
        marginal.reshape(per_row),
        joint_weights=weights.reshape(-1),
        marginal_weights=(weights[..., None] * negative).reshape(per_row),
    )


def _rolled_among_counted(
    rng_key: Key[Array, ""], counts: Bool[Array, "particles data"]
) -> Int[Array, "particles data"]:
    """For each datum that counts another that does, by one roll of a particle's."""
    order = jnp.argsort(~counts, axis=1, stable=True)  # those that count first
    rank = jnp.argsort(order, axis=1)
    total = counts.sum(1, keepdims=True)
    draw = jax.random.randint(rng_key, (len(counts), 1), 0, LARGE)
    offset = 1 + draw % jnp.maximum(total - 1, 1)
    # A datum alone meets one that does not count, so that nothing does.
    return jnp.take_along_axis(order, (rank + offset) % jnp.maximum(total, 2), axis=1)


def _score_choices(
    critic: Critic,
    x: Shaped[Array, " particles data *event"],
    z: Float[Array, "particles data features"],
    choices: Int[Array, "sets particles data"],
) -> Float[Array, "sets particles data"]:
    """Scores of every datum with the one of its particle's codes that each set names."""
    particles, batch_size = z.shape[:2]
    first = batch_size * jnp.arange(particles)[None, :, None]
    rows, codes = (array.reshape(-1, *array.shape[2:]) for array in (x, z))
    if is_projecting(critic):
        rows, codes = critic.project(rows, codes)
        rows = rows.reshape(1, particles, batch_size, -1)
        return critic.score_projected(rows, codes[first + choices])
    scores = [_score(critic, rows, codes[chosen.reshape(-1)]) for chosen in first + choices]
    return jnp.stack(scores).reshape(choices.shape)


def _score(critic: Critic, x: Array, z: Array) -> Array:
    scores = critic(x, z)
    check_scores(scores, len(z))
    return scores

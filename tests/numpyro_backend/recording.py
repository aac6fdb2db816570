"""A critic, and a regulariser, that keep what they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from numpyro_backend.critics import ConcatCritic
from numpyro_backend.rows import Rows
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import Params, initial, wrapped

CRITIC = "critic$params"


@dataclass(frozen=True)
class Recording:
    """A critic that keeps what it was shown."""

    critic: Any
    calls: list[tuple[Array, Array]] = field(default_factory=list)

    def init(self, rng_key: Array) -> Any:
        return self.critic.init(rng_key)

    def bind(self, params: Any) -> Callable[[Array, Array], Array]:
        def score(x: Array, z: Array) -> Array:
            self.calls.append((x, z))
            return self.critic.apply(params, x, z)

        return score


def concat(x_dim: int = 3, z_dim: int = 2, *, width: int = 8) -> ConcatCritic:
    return ConcatCritic(x_dim, z_dim, hidden=(width,), activation=jnp.tanh)


class Seen(NamedTuple):
    """What an objective's critic and its regulariser saw in one evaluation."""

    calls: list[tuple[Array, Array]]
    rows: Rows


def observe(
    critic: Any, alpha: float, case: Programs, *, seed: int = 3, **settings: Any
) -> tuple[Seen, Params]:
    recording, kept = Recording(critic), list[Rows]()

    def keep(rows: Rows) -> Array:
        kept.append(rows)
        return jnp.zeros((), rows.values.dtype)

    objective = TraceInfoMax_ELBO(recording, alpha, regularizer=keep, **settings)
    params = initial(wrapped(objective, case))

    @jax.jit
    def evaluate(params: Params) -> Seen:
        objective.loss(jax.random.key(seed), params, case.model, case.guide, *case.args)
        # All pairs are scored inside a transformation, out of which their rows cannot be had.
        is_shifted = settings.get("negatives", "shift") == "shift"
        return Seen(recording.calls if is_shifted else [], kept[-1])

    return evaluate(params), params


def all_scores(critic: Any, params: Params, x: Array, z: Array) -> np.ndarray:
    """The critic's score of every pair, one row of either at a time."""
    every = jax.vmap(jax.vmap(critic.bind(params[CRITIC]), (None, 0)), (0, None))
    return np.asarray(jax.jit(every)(x[:, None], z[:, None])[..., 0])


def evaluate(objective: Any, case: Programs, params: Params | None = None) -> None:
    """One evaluation by shapes alone, with the critic's parameters as it draws them."""

    def loss(key: Array) -> Array:
        drawn = {CRITIC: objective.critic.init(key)} if params is None else params
        return objective.loss(key, drawn, case.model, case.guide, *case.args)

    jax.eval_shape(loss, jax.random.key(0))

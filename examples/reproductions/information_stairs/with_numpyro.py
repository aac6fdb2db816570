"""Climb the stairs with the array functions of `numpyro_backend`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.optim import Adam

from information_stairs import problem
from information_stairs.problem import DIMS, STAIRS, TRAINED_AS, Climb, Plan, correlation
from numpyro_backend._arrays.negatives import SCORERS, bound_information
from numpyro_backend.critics import ConcatCritic, SeparableCritic
from numpyro_backend.mutual_information import BOUNDS, MutualInformationEstimate

CRITICS = {"joint": ConcatCritic, "separable": SeparableCritic}

Critic = Callable[[Array, Array], Array]
Found = dict[str, MutualInformationEstimate]
Step = tuple[Array, Array, Array]  # its key, the nats and the correlation of its stair


def estimates(climb: Climb, plan: Plan, device: str) -> dict[str, np.ndarray]:
    """Every step's estimate by each bound, in nats.

    A minibatch is new, so its estimate is that of held-out data.
    """
    init_key, key = jax.random.split(jax.random.key(climb.seed))
    stairs = np.repeat([(nats, correlation(nats)) for nats in STAIRS], plan.iterations, axis=0)
    steps = (jax.random.split(key, len(stairs)), *jnp.asarray(stairs.T))
    if climb.critic == "exact":
        found = jax.jit(lambda steps: jax.lax.map(partial(_at_the_ratio, climb), steps))(steps)
    else:
        found = jax.jit(partial(_trained, climb, plan))(init_key, steps)
    return {bound: np.asarray(values) for bound, values in found.items()}


def correlated_normals(key: Array, rows: int, rho: Array) -> tuple[Array, Array]:
    """Draw (x, z) of that correlation."""
    x, noise = jax.random.normal(key, (2, rows, DIMS))
    return x, rho * x + jnp.sqrt(1 - rho**2) * noise


def _trained(climb: Climb, plan: Plan, init_key: Array, steps: Step) -> dict[str, Array]:
    """Steps of critics that no parameter is common to, so that one optimiser trains them all."""
    surrogates = dict.fromkeys(TRAINED_AS.values())
    critic = CRITICS[climb.critic](DIMS, DIMS, plan.hidden)
    optimiser = Adam(plan.learning_rate)

    def take_step(state: Any, step: Step) -> tuple[Any, dict[str, Array]]:
        def loss(params: Mapping[str, Any]) -> tuple[Array, dict[str, Array]]:
            critics = {name: critic.bind(params[name]) for name in surrogates}
            found = _read(climb, critics, step, cubic=climb.pairs == "cubic")
            return -sum(found[name].surrogate for name in surrogates), _estimates(found)

        gradient, found = jax.grad(loss, has_aux=True)(optimiser.get_params(state))
        return optimiser.update(gradient, state), found

    keys = jax.random.split(init_key, len(surrogates))
    params = {name: critic.init(key) for name, key in zip(surrogates, keys, strict=True)}
    return jax.lax.scan(take_step, optimiser.init(params), steps)[1]


def _at_the_ratio(climb: Climb, step: Step) -> dict[str, Array]:
    return _estimates(_read(climb, problem.best_critics(*step[1:]), step, cubic=False))


def _read(climb: Climb, critics: Mapping[str, Critic], step: Step, *, cubic: bool) -> Found:
    key, _, rho = step
    draw_key, score_key = jax.random.split(key)
    x, z = correlated_normals(draw_key, problem.BATCH, rho)
    z = z**3 if cubic else z
    score = SCORERS[climb.negatives]
    scores = {name: score(score_key, critics[name], x[None], z[None]) for name in critics}
    return {
        name: bound_information(BOUNDS[name], scores[trained_as])
        for name, trained_as in TRAINED_AS.items()
    }


def _estimates(found: Found) -> dict[str, Array]:
    return {bound: value.estimate for bound, value in found.items()}

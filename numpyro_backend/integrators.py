# SPDX-License-Identifier: MIT
r"""NumPyro's velocity Verlet integrator, chained into flows."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float
from numpyro.infer import hmc_util

from pyro_infovae._core import integrators as _shared
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.integrators import (
    StepSize,
    clipped,
    scaled,
    step_size_of,
    with_globals,
)

__all__ = ["annealed_leapfrog", "tempered_leapfrog"]

Sites = dict[str, Array]
PotentialGrad = Callable[[Sites], tuple[Sites, Array]]
Scores = tuple[Sites, Sites, Any]
Gradients = Callable[[Sites], tuple[Sites, Sites, Any]]


@documented(_shared.ANNEALED_LEAPFROG)
def annealed_leapfrog(
    u: Mapping[str, Float[Array, "*shape"]],
    rho: Mapping[str, Float[Array, "*shape"]],
    gradients: Gradients,
    inverse_temperatures: Float[Array, " num_steps"],
    persistence: Float[Array, " num_steps-1"],
    noise: Mapping[str, Float[Array, " num_steps-1 *shape"]],
    *,
    step_size: Mapping[str, Float[Array, " num_steps *broadcast"]],
    event_dims: Mapping[str, int],
) -> tuple[Sites, Sites, Sites, tuple[Any, Any]]:
    r"""Leapfrog steps of NumPyro's velocity Verlet along a bridge from a density q to a density p.

    Example:
        >>> def normals(u):  # p is N(1, 1), and q is N(0, 1)
        ...     return {"z": 1 - u["z"]}, {"z": -u["z"]}, -0.5 * ((u["z"] - 1) ** 2).sum()
        >>> u, rho, log_ratio, _ = annealed_leapfrog(
        ...     {"z": jnp.zeros(2)}, {"z": jnp.zeros(2)}, normals, jnp.array([0.5, 1.0]),
        ...     jnp.array([0.7]), {"z": jnp.zeros((1, 2))},
        ...     step_size={"z": jnp.full(2, 0.5)}, event_dims={"z": 1})
        >>> [f"{z:.4f}" for z in u["z"]]
        ['0.2617', '0.2617']
    """
    _shared.check_annealed_flow(u, rho, inverse_temperatures, persistence, noise, step_size)
    num_steps = len(inverse_temperatures)
    step_sizes = {
        site: _column(step_size[site], position, num_steps, per_step=True)
        for site, position in u.items()
    }
    # Nothing is refreshed after the last step.
    etas = jnp.append(persistence, 1.0)
    noise = {site: jnp.append(noise[site], jnp.zeros_like(r)[None], 0) for site, r in rho.items()}

    def step(state: Any, inputs: tuple[Sites, Array, Array, Sites]) -> tuple[Any, None]:
        position, momentum, scores, log_ratio, _ = state
        epsilon, beta, eta, xi = inputs
        _, update = _velocity_verlet(
            lambda z: _bridge(gradients, beta, epsilon, event_dims, z), _kinetic_energy
        )
        kicks = _kicks(scores, beta, epsilon, event_dims)
        started = hmc_util.IntegratorState(position, momentum, scores[2], kicks)
        position, after, scores, _ = update(1.0, epsilon, started)
        log_ratio = {
            site: log_ratio[site] + 0.5 * (momentum[site] ** 2 - r**2) for site, r in after.items()
        }
        refreshed = {
            site: eta.astype(r.dtype) * r + _refreshment(eta).astype(r.dtype) * xi[site]
            for site, r in after.items()
        }
        return (position, refreshed, scores, log_ratio, after), None

    scores = gradients(dict(u))
    still = jax.tree.map(jnp.zeros_like, dict(rho))
    start = (dict(u), dict(rho), scores, still, dict(rho))
    columns = (step_sizes, inverse_temperatures, etas, noise)
    (position, _, ended, log_ratio, momentum), _ = lax.scan(step, start, columns)
    return position, momentum, log_ratio, (scores[2], ended[2])


def _refreshment(eta: Array) -> Array:
    """The share of the noise, whose slope in a persistence of 1 is infinite."""
    fresh = 1 - eta**2
    return jnp.where(fresh > 0, jnp.sqrt(jnp.where(fresh > 0, fresh, 1.0)), 0.0)


def _bridge(
    gradients: Gradients,
    beta: Array,
    epsilon: Sites,
    event_dims: Mapping[str, int],
    z: Sites,
) -> tuple[Scores, Sites]:
    """What the next step needs, where NumPyro carries the energy along, and the kicks."""
    scores = gradients(z)
    return scores, _kicks(scores, beta, epsilon, event_dims)


def _kicks(scores: Scores, beta: Array, epsilon: Sites, event_dims: Mapping[str, int]) -> Sites:
    """The gradient of a potential on the bridge times the step size."""
    target, start, _ = scores
    return {
        site: clipped(
            -epsilon[site] * (beta * g + (1 - beta) * start[site]).astype(g.dtype), event_dims[site]
        )
        for site, g in target.items()
    }


@documented(_shared.TEMPERED_LEAPFROG)
def tempered_leapfrog(
    u: Mapping[str, Float[Array, "*shape"]],
    rho: Mapping[str, Float[Array, "*shape"]],
    potential_grad: PotentialGrad,
    inverse_temperatures: Float[Array, " num_steps+1"],
    *,
    step_size: StepSize,
    per_step: bool = False,
) -> tuple[Sites, Sites, Array]:
    r"""Leapfrog steps of NumPyro's velocity Verlet, the momentum tempered after each.

    Example:
        >>> from numpyro_backend.tempering import inverse_temperatures
        >>> def oscillator(u):
        ...     return {"z": u["z"]}, 0.5 * (u["z"] ** 2).sum()
        >>> u, rho, energy = tempered_leapfrog(
        ...     {"z": jnp.ones(2)}, {"z": jnp.zeros(2)}, oscillator,
        ...     inverse_temperatures(0.25, 3), step_size=jnp.array([0.1, 0.2]))
        >>> [f"{z:.4f}" for z in u["z"]]
        ['0.9598', '0.8424']
    """
    _shared.check_flow(u, rho, inverse_temperatures, step_size, per_step=per_step)
    momentum_factors = jnp.sqrt(inverse_temperatures[:-1] / inverse_temperatures[1:])
    num_steps = len(momentum_factors)
    step_sizes = {
        site: _column(step_size_of(step_size, site), position, num_steps, per_step)
        for site, position in u.items()
    }

    def step(state: _State, inputs: tuple[Sites, Array]) -> tuple[_State, None]:
        position, momentum, gradient, energy = state
        epsilon, factor = inputs
        _, update = _velocity_verlet(
            lambda z: _scaled_gradient(potential_grad, epsilon, z), _kinetic_energy
        )
        position, momentum, (gradient, energy), _ = update(
            1.0,
            epsilon,
            hmc_util.IntegratorState(position, momentum, energy, scaled(epsilon, gradient)),
        )
        momentum = {site: factor.astype(r.dtype) * r for site, r in momentum.items()}
        return (position, momentum, gradient, energy), None

    start = (dict(u), dict(rho), *potential_grad(dict(u)))
    (u_next, rho_next, _, energy), _ = lax.scan(step, start, (step_sizes, momentum_factors))
    return u_next, rho_next, energy


_State = tuple[Sites, Sites, Sites, Array]


# A copy of NumPyro's function whose ``potential_fn`` supplies value and gradient itself.
_velocity_verlet = with_globals(
    hmc_util.velocity_verlet, _value_and_grad=lambda value_and_grad, z, _: value_and_grad(z)
)


def _kinetic_energy(inverse_mass: Sites, momentum: Sites) -> Array:
    return 0.5 * sum(
        ((inverse_mass[site] * r**2).sum() for site, r in momentum.items()), jnp.zeros(())
    )


def _scaled_gradient(
    potential_grad: PotentialGrad, epsilon: Sites, z: Sites
) -> tuple[tuple[Sites, Array], Sites]:
    """What the next step needs, where NumPyro carries the energy along, and the scaled gradient."""
    gradient, energy = potential_grad(z)
    return (gradient, energy), scaled(epsilon, gradient)


def _column(step_size: float | Array, position: Array, num_steps: int, per_step: bool) -> Array:
    """The step sizes of a site, with a leading axis of steps."""
    column = jnp.asarray(step_size, position.dtype)
    if not per_step:
        column = jnp.broadcast_to(column, (num_steps, *column.shape))
    missing = position.ndim + 1 - column.ndim if column.ndim > 1 else 0
    return jnp.expand_dims(column, tuple(range(1, 1 + missing)))

# SPDX-License-Identifier: MIT
r"""NumPyro's velocity Verlet integrator, chained into a tempered flow."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float
from numpyro.infer import hmc_util

from pyro_infovae._core import integrators as _shared
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.integrators import StepSize, scaled, step_size_of, with_globals

__all__ = ["tempered_leapfrog"]

Sites = dict[str, Array]
PotentialGrad = Callable[[Sites], tuple[Sites, Array]]


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

    # The gradients are kept, and what is elementwise is computed again.
    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("gradient"))
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
    gradient = checkpoint_name(gradient, "gradient")  # type: ignore[no-untyped-call]
    return (gradient, energy), scaled(epsilon, gradient)


def _column(step_size: float | Array, position: Array, num_steps: int, per_step: bool) -> Array:
    """The step sizes of a site, with a leading axis of steps."""
    column = jnp.asarray(step_size, position.dtype)
    if not per_step:
        column = jnp.broadcast_to(column, (num_steps, *column.shape))
    missing = position.ndim + 1 - column.ndim if column.ndim > 1 else 0
    return jnp.expand_dims(column, tuple(range(1, 1 + missing)))

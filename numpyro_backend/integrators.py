# SPDX-License-Identifier: MIT
r"""NumPyro's velocity Verlet integrator, chained into a tempered flow."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float
from numpyro.infer import hmc_util

__all__ = ["tempered_leapfrog"]

Sites = dict[str, Array]
PotentialGrad = Callable[[Sites], tuple[Sites, Array]]
StepSize = float | Array | Mapping[str, float | Array]


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

    For k from 1 to K,

    .. math::

        \rho \leftarrow \rho - \tfrac{\varepsilon}{2} \nabla U(u); \quad
        u \leftarrow u + \varepsilon \rho; \quad
        \rho \leftarrow \rho - \tfrac{\varepsilon}{2} \nabla U(u); \quad
        \rho \leftarrow \rho \sqrt{\beta_{k-1} / \beta_k},

    at K + 1 gradients. The Jacobian determinant of :math:`(u_0, \rho_0) \mapsto (u_K, \rho_K)` is
    :math:`(\beta_0 / \beta_K)^{d/2}` in d dimensions, whatever the step sizes and the potential. It
    is so for any force that depends on the position alone, and for each row where a row's force
    depends on that row alone.

    Step sizes broadcast against each site, elementwise. NumPyro's integrator takes one number, so
    it runs with step size 1, inverse mass :math:`\varepsilon` and the force
    :math:`-\varepsilon \nabla U`, which are the same updates.

    Args:
        u: Position per site.
        rho: Momentum per site, shaped as the position.
        potential_grad: From the positions to :math:`\nabla U` per site and an array of the caller's
            choice, usually U. For a log density it is of :math:`U = -\ell`.
        inverse_temperatures: :math:`\beta_0, \dots, \beta_K`; see :mod:`numpyro_backend.tempering`.
        step_size: :math:`\varepsilon`, for all sites or per site: a number, or an array that
            broadcasts to the site's shape.
        per_step: Whether each step size has a leading axis of K, one entry per step.

    Returns:
        :math:`u_K` and :math:`\rho_K` per site, and the second result of ``potential_grad`` at
        :math:`u_K`. Gradients reach all arguments and whatever ``potential_grad`` is differentiable
        in.

    Raises:
        ValueError: If sites or shapes do not match.

    References:
        Caterini, Doucet, Sejdinovic, *Hamiltonian Variational Auto-Encoder* (arXiv 1805.11328).

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
    if inverse_temperatures.ndim != 1 or inverse_temperatures.shape[0] < 2:
        raise ValueError(
            "Expected inverse_temperatures of shape (num_steps + 1,), num_steps >= 1; "
            f"got {inverse_temperatures.shape}"
        )
    _check_momentum(u, rho)
    momentum_factors = jnp.sqrt(inverse_temperatures[:-1] / inverse_temperatures[1:])
    step_sizes = _step_sizes(step_size, u, len(momentum_factors), per_step)

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
            hmc_util.IntegratorState(position, momentum, energy, _scaled(epsilon, gradient)),
        )
        momentum = {site: factor.astype(r.dtype) * r for site, r in momentum.items()}
        return (position, momentum, gradient, energy), None

    start = (dict(u), dict(rho), *potential_grad(dict(u)))
    (u_next, rho_next, _, energy), _ = lax.scan(step, start, (step_sizes, momentum_factors))
    return u_next, rho_next, energy


_State = tuple[Sites, Sites, Sites, Array]


def _with_globals(function: Callable[..., Any], **replacements: object) -> FunctionType:
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__,
        {**function.__globals__, **replacements},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


# A copy of NumPyro's function whose ``potential_fn`` supplies value and gradient itself.
_velocity_verlet = _with_globals(
    hmc_util.velocity_verlet, _value_and_grad=lambda value_and_grad, z, _: value_and_grad(z)
)


def _kinetic_energy(inverse_mass: Sites, momentum: Sites) -> Array:
    return 0.5 * sum(
        ((inverse_mass[site] * r**2).sum() for site, r in momentum.items()), jnp.zeros(())
    )


def _scaled(epsilon: Sites, values: Sites) -> Sites:
    return {site: epsilon[site] * value for site, value in values.items()}


def _scaled_gradient(
    potential_grad: PotentialGrad, epsilon: Sites, z: Sites
) -> tuple[tuple[Sites, Array], Sites]:
    """What the next step needs, where NumPyro carries the energy along, and the scaled gradient."""
    gradient, energy = potential_grad(z)
    gradient = checkpoint_name(gradient, "gradient")  # type: ignore[no-untyped-call]
    return (gradient, energy), _scaled(epsilon, gradient)


def _check_momentum(u: Mapping[str, Array], rho: Mapping[str, Array]) -> None:
    if u.keys() != rho.keys():
        raise ValueError(f"Expected rho of the sites {sorted(u)}; got {sorted(rho)}")
    for site, position in u.items():
        if rho[site].shape != position.shape:
            raise ValueError(
                f"Expected rho[{site!r}] of shape {position.shape}; got {rho[site].shape}"
            )


def _step_sizes(
    step_size: StepSize, u: Mapping[str, Array], num_steps: int, per_step: bool
) -> Sites:
    """Step size per site, with a leading axis of steps."""
    if isinstance(step_size, Mapping) and step_size.keys() != u.keys():
        raise ValueError(f"Expected step_size of the sites {sorted(u)}; got {sorted(step_size)}")
    columns: Sites = {}
    for site, position in u.items():
        value = step_size[site] if isinstance(step_size, Mapping) else step_size
        column = jnp.asarray(value, position.dtype)
        if not per_step:
            column = jnp.broadcast_to(column, (num_steps, *column.shape))
        elif column.shape[:1] != (num_steps,):
            raise ValueError(
                f"Expected step_size of {site!r} with a leading axis of {num_steps} steps; "
                f"got shape {column.shape}"
            )
        if not _broadcasts(column.shape[1:], position.shape):
            raise ValueError(
                f"Expected step_size of {site!r} to broadcast to {position.shape}; "
                f"got shape {column.shape[1:]}{' in each step' if per_step else ''}"
            )
        missing = position.ndim + 1 - column.ndim if column.ndim > 1 else 0
        columns[site] = jnp.expand_dims(column, tuple(range(1, 1 + missing)))
    return columns


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, target) for size, target in zip(reversed(shape), reversed(to), strict=False)
    )

# SPDX-License-Identifier: MIT
r"""Pyro's velocity Verlet integrator, differentiable, and chained into flows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from pyro.ops import integrator
from torch import Tensor

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

Sites = dict[str, Tensor]
PotentialGrad = Callable[[Sites], tuple[Sites, Tensor]]
Scores = tuple[Sites, Sites, Tensor]
Gradients = Callable[[Sites], Scores]


@documented(_shared.ANNEALED_LEAPFROG)
def annealed_leapfrog(
    u: Mapping[str, Float[Tensor, "*shape"]],
    rho: Mapping[str, Float[Tensor, "*shape"]],
    gradients: Gradients,
    inverse_temperatures: Float[Tensor, " num_steps"],
    persistence: Float[Tensor, " num_steps-1"],
    noise: Mapping[str, Float[Tensor, " num_steps-1 *shape"]],
    *,
    step_size: Mapping[str, Float[Tensor, " num_steps *broadcast"]],
    event_dims: Mapping[str, int],
) -> tuple[Sites, Sites, Sites, tuple[Tensor, Tensor]]:
    r"""Leapfrog steps of Pyro's velocity Verlet along a bridge from a density q to a density p.

    Example:
        >>> import torch
        >>> def normals(u):  # p is N(1, 1), and q is N(0, 1)
        ...     return {"z": 1 - u["z"]}, {"z": -u["z"]}, -0.5 * ((u["z"] - 1) ** 2).sum()
        >>> u, rho, log_ratio, _ = annealed_leapfrog(
        ...     {"z": torch.zeros(2)}, {"z": torch.zeros(2)}, normals, torch.tensor([0.5, 1.0]),
        ...     torch.tensor([0.7]), {"z": torch.zeros(1, 2)},
        ...     step_size={"z": torch.full((2,), 0.5)}, event_dims={"z": 1})
        >>> u["z"]
        tensor([0.2617, 0.2617])
    """
    _shared.check_annealed_flow(u, rho, inverse_temperatures, persistence, noise, step_size)
    position, momentum = dict(u), dict(rho)
    log_ratio: dict[str, Any] = dict.fromkeys(u, 0.0)
    columns = {site: size.unbind() for site, size in step_size.items()}
    etas, refreshed = persistence.unbind(), (1 - persistence**2).sqrt().unbind()
    scores = gradients(position)
    first = scores[2]
    for k, beta in enumerate(inverse_temperatures.unbind()):
        epsilon = {site: column[k] for site, column in columns.items()}
        potential = partial(_bridge, gradients, beta, epsilon, event_dims)
        before = momentum
        position, momentum, _, scores = _velocity_verlet(
            position,
            momentum,
            potential,
            kinetic_grad=partial(scaled, epsilon),
            step_size=1.0,
            z_grads=_kicks(scores, beta, epsilon, event_dims),
        )
        for site, after in momentum.items():
            log_ratio[site] = log_ratio[site] + 0.5 * (before[site] ** 2 - after**2)
        if k < len(etas):
            momentum = {
                site: etas[k] * after + refreshed[k] * noise[site][k]
                for site, after in momentum.items()
            }
    return position, momentum, log_ratio, (first, scores[2])


@documented(_shared.TEMPERED_LEAPFROG)
def tempered_leapfrog(
    u: Mapping[str, Float[Tensor, "*shape"]],
    rho: Mapping[str, Float[Tensor, "*shape"]],
    potential_grad: PotentialGrad,
    inverse_temperatures: Float[Tensor, " num_steps+1"],
    *,
    step_size: StepSize,
    per_step: bool = False,
) -> tuple[Sites, Sites, Tensor]:
    r"""Leapfrog steps of Pyro's velocity Verlet, the momentum tempered after each.

    Example:
        >>> import torch
        >>> from pyro_infovae.tempering import inverse_temperatures
        >>> def oscillator(u):
        ...     return {"z": u["z"]}, 0.5 * (u["z"] ** 2).sum()
        >>> u, rho, energy = tempered_leapfrog(
        ...     {"z": torch.ones(2)}, {"z": torch.zeros(2)}, oscillator,
        ...     inverse_temperatures(0.25, 3), step_size=torch.tensor([0.1, 0.2]))
        >>> u["z"]
        tensor([0.9598, 0.8424])
    """
    _shared.check_flow(u, rho, inverse_temperatures, step_size, per_step=per_step)
    momentum_factors = (inverse_temperatures[:-1] / inverse_temperatures[1:]).sqrt().unbind()
    sizes: dict[str, Any] = {site: step_size_of(step_size, site) for site in u}
    columns: dict[str, Sequence[float | Tensor]] = {
        site: size.unbind() if per_step else [size] * len(momentum_factors)
        for site, size in sizes.items()
    }

    u_next, rho_next = dict(u), dict(rho)
    gradient, energy = potential_grad(u_next)
    for k, factor in enumerate(momentum_factors):
        epsilon = {site: column[k] for site, column in columns.items()}
        u_next, rho_next, _, (gradient, energy) = _velocity_verlet(
            u_next,
            rho_next,
            partial(_scaled_gradient, potential_grad, epsilon),
            kinetic_grad=partial(scaled, epsilon),
            step_size=1.0,
            z_grads=scaled(epsilon, gradient),
        )
        rho_next = {site: factor * momentum for site, momentum in rho_next.items()}
    return u_next, rho_next, energy


# Copies of Pyro's functions whose ``potential_fn`` supplies the gradient itself: Pyro's detaches.
_velocity_verlet: Callable[..., Any] = with_globals(
    integrator.velocity_verlet,
    _single_step_verlet=with_globals(
        integrator._single_step_verlet, potential_grad=lambda gradient_fn, z: gradient_fn(z)
    ),
)


def _scaled_gradient(
    potential_grad: PotentialGrad, epsilon: Mapping[str, float | Tensor], z: Sites
) -> tuple[Sites, tuple[Sites, Tensor]]:
    """The scaled gradient and, where Pyro carries the energy along, what the next step needs."""
    gradient, energy = potential_grad(z)
    return scaled(epsilon, gradient), (gradient, energy)


def _bridge(
    gradients: Gradients,
    beta: Tensor,
    epsilon: Mapping[str, Tensor],
    event_dims: Mapping[str, int],
    z: Sites,
) -> tuple[Sites, Scores]:
    """The kicks and, where Pyro carries the energy along, what the next step needs."""
    scores = gradients(z)
    return _kicks(scores, beta, epsilon, event_dims), scores


def _kicks(
    scores: Scores, beta: Tensor, epsilon: Mapping[str, Tensor], event_dims: Mapping[str, int]
) -> Sites:
    """The gradient of a potential on the bridge times the step size."""
    target, start, _ = scores
    return {
        site: clipped(
            -epsilon[site] * (beta * target[site] + (1 - beta) * start[site]), event_dims[site]
        )
        for site in target
    }

# SPDX-License-Identifier: MIT
r"""Pyro's velocity Verlet integrator, differentiable, and chained into a tempered flow."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from pyro.ops import integrator
from torch import Tensor

from pyro_infovae._arrays.rebinding import with_globals

__all__ = ["differentiable_velocity_verlet", "potential_grad", "tempered_leapfrog"]

Sites = dict[str, Tensor]
PotentialGrad = Callable[[Sites], tuple[Sites, Tensor]]
StepSize = float | Tensor | Mapping[str, float | Tensor]


def potential_grad(potential_fn: Callable[[Sites], Tensor], z: Sites) -> tuple[Sites, Tensor]:
    r"""Gradient of a potential, with its graph: Pyro's ``potential_grad`` detaches.

    It is the partial derivative in each site, even where the values of ``z`` are functions of each
    other, and it works under ``torch.no_grad()``, where the result carries no graph. Errors of
    ``potential_fn`` propagate.

    Args:
        potential_fn: Potential energy :math:`U(z)`, a scalar.
        z: Value per site.

    Returns:
        :math:`\nabla U(z)` per site, and :math:`U(z)`.

    Example:
        >>> z = {"z": torch.tensor([1.0, 2.0])}
        >>> gradient, energy = potential_grad(lambda z: (z["z"] ** 3).sum(), z)
        >>> gradient["z"].detach(), energy.detach()
        (tensor([ 3., 12.]), tensor(9.))
    """
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own = {
            site: value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
            for site, value in z.items()
        }
        energy = potential_fn(own)
        gradients = torch.autograd.grad(energy, tuple(own.values()), create_graph=keep_graph)
    return dict(zip(own, gradients, strict=True)), energy if keep_graph else energy.detach()


def differentiable_velocity_verlet(
    z: Sites,
    r: Sites,
    potential_fn: Callable[[Sites], Tensor],
    kinetic_grad: Callable[[Sites], Sites],
    step_size: float | Tensor,
    num_steps: int = 1,
    z_grads: Sites | None = None,
) -> tuple[Sites, Sites, Sites, Tensor]:
    r"""``pyro.ops.integrator.velocity_verlet`` itself, with the graph of its gradients kept.

    Equal to Pyro's bit for bit; its result can be differentiated in ``z``, ``r``, ``step_size`` and
    everything the potential depends on.

    Args:
        z: Position per site.
        r: Momentum per site.
        potential_fn: Potential energy :math:`U(z)`, a scalar.
        kinetic_grad: Gradient of the kinetic energy in the momentum.
        step_size: Step size.
        num_steps: Number of steps.
        z_grads: Gradient of the potential at ``z``, where it is known.

    Returns:
        Position, momentum, gradient of the potential, and potential energy after the last step.

    Example:
        >>> step_size = torch.tensor(0.1, requires_grad=True)
        >>> z, r, _, _ = differentiable_velocity_verlet(
        ...     {"z": torch.ones(())}, {"z": torch.zeros(())},
        ...     lambda z: 0.5 * z["z"] ** 2, lambda r: r, step_size)
        >>> z["z"].backward()  # z = 1 - step_size**2 / 2
        >>> step_size.grad
        tensor(-0.1000)
    """
    verlet = _velocity_verlet_with(potential_grad)
    result: tuple[Sites, Sites, Sites, Tensor] = verlet(
        z, r, potential_fn, kinetic_grad, step_size, num_steps, z_grads
    )
    return result


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

    Step sizes broadcast against each site, elementwise. Pyro's integrator takes one number, so it
    runs with step size 1 on the force :math:`-\varepsilon \nabla U` and the velocity
    :math:`\varepsilon \rho`, which are the same updates.

    Args:
        u: Position per site.
        rho: Momentum per site, shaped as the position.
        potential_grad: From the positions to :math:`\nabla U` per site and a tensor of the caller's
            choice, usually U. For a log density it is of :math:`U = -\ell`.
        inverse_temperatures: :math:`\beta_0, \dots, \beta_K`; see :mod:`pyro_infovae.tempering`.
        step_size: :math:`\varepsilon`, for all sites or per site: a number, or a tensor that
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
        >>> from functools import partial
        >>> from pyro_infovae.tempering import inverse_temperatures
        >>> oscillator = partial(potential_grad, lambda u: 0.5 * (u["z"] ** 2).sum())
        >>> u, rho, energy = tempered_leapfrog(
        ...     {"z": torch.ones(2)}, {"z": torch.zeros(2)}, oscillator,
        ...     inverse_temperatures(0.25, 3), step_size=torch.tensor([0.1, 0.2]))
        >>> u["z"].detach()
        tensor([0.9598, 0.8424])
    """
    if inverse_temperatures.dim() != 1 or inverse_temperatures.shape[0] < 2:
        raise ValueError(
            "Expected inverse_temperatures of shape (num_steps + 1,), num_steps >= 1; "
            f"got {tuple(inverse_temperatures.shape)}"
        )
    _check_momentum(u, rho)
    momentum_factors = (inverse_temperatures[:-1] / inverse_temperatures[1:]).sqrt().unbind()
    step_sizes = _step_sizes(step_size, u, len(momentum_factors), per_step)

    verlet = _velocity_verlet_with(lambda gradient_fn, z: gradient_fn(z))
    u_next, rho_next = dict(u), dict(rho)
    gradient, energy = potential_grad(u_next)
    for epsilon, factor in zip(step_sizes, momentum_factors, strict=True):
        u_next, rho_next, _, (gradient, energy) = verlet(
            u_next,
            rho_next,
            partial(_scaled_gradient, potential_grad, epsilon),
            kinetic_grad=partial(_scaled, epsilon),
            step_size=1.0,
            z_grads=_scaled(epsilon, gradient),
        )
        rho_next = {site: factor * momentum for site, momentum in rho_next.items()}
    return u_next, rho_next, energy


def _velocity_verlet_with(potential_grad: Callable[..., Any]) -> Callable[..., Any]:
    """Pyro's step functions, copied to call another ``potential_grad``; Pyro's own stay as is."""
    step = with_globals(integrator._single_step_verlet, potential_grad=potential_grad)
    return with_globals(integrator.velocity_verlet, _single_step_verlet=step)


def _scaled(epsilon: Mapping[str, float | Tensor], values: Sites) -> Sites:
    return {site: epsilon[site] * value for site, value in values.items()}


def _scaled_gradient(
    potential_grad: PotentialGrad, epsilon: Mapping[str, float | Tensor], z: Sites
) -> tuple[Sites, tuple[Sites, Tensor]]:
    """The scaled gradient and, where Pyro carries the energy along, what the next step needs."""
    gradient, energy = potential_grad(z)
    return _scaled(epsilon, gradient), (gradient, energy)


def _check_momentum(u: Mapping[str, Tensor], rho: Mapping[str, Tensor]) -> None:
    if u.keys() != rho.keys():
        raise ValueError(f"Expected rho of the sites {sorted(u)}; got {sorted(rho)}")
    for site, position in u.items():
        if rho[site].shape != position.shape:
            raise ValueError(
                f"Expected rho[{site!r}] of shape {tuple(position.shape)}; "
                f"got {tuple(rho[site].shape)}"
            )


def _step_sizes(
    step_size: StepSize, u: Mapping[str, Tensor], num_steps: int, per_step: bool
) -> list[dict[str, float | Tensor]]:
    """Step size per step and site."""
    if isinstance(step_size, Mapping) and step_size.keys() != u.keys():
        raise ValueError(f"Expected step_size of the sites {sorted(u)}; got {sorted(step_size)}")
    columns: dict[str, Sequence[float | Tensor]] = {}
    for site, position in u.items():
        value = step_size[site] if isinstance(step_size, Mapping) else step_size
        shape = value.shape if isinstance(value, Tensor) else torch.Size()
        if not per_step:
            columns[site] = [value] * num_steps
        elif isinstance(value, Tensor) and shape[:1] == (num_steps,):
            columns[site], shape = value.unbind(), shape[1:]
        else:
            raise ValueError(
                f"Expected step_size of {site!r} with a leading axis of {num_steps} steps; "
                f"got shape {tuple(shape)}"
            )
        if not _broadcasts(shape, position.shape):
            raise ValueError(
                f"Expected step_size of {site!r} to broadcast to {tuple(position.shape)}; "
                f"got shape {tuple(shape)}{' in each step' if per_step else ''}"
            )
    return [{site: column[k] for site, column in columns.items()} for k in range(num_steps)]


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, target) for size, target in zip(reversed(shape), reversed(to), strict=False)
    )

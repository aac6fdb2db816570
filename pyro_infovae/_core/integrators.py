# SPDX-License-Identifier: MIT
"""What the tempered leapfrog of both halves is, and the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

from jaxtyping import Bool, Float

from pyro_infovae._core.arrays import Array, namespace

StepSize = float | Array | Mapping[str, float | Array]

LARGEST_MOMENTUM = 1e5
"""Beyond it a flow has diverged: the log density of such a momentum is below -10⁹ nats."""

LARGEST_KICK = 3.0
"""Of a step on a row of d numbers, in units of the momentum's norm, which is about sqrt(d)."""

TEMPERED_LEAPFROG = r"""
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

    Step sizes broadcast against each site, elementwise. The framework's integrator takes one
    number, so it runs with step size 1 on the force :math:`-\varepsilon \nabla U` and the velocity
    :math:`\varepsilon \rho`, which are the same updates.

    Args:
        u: Position per site.
        rho: Momentum per site, shaped as the position.
        potential_grad: From the positions to :math:`\nabla U` per site and an array of the caller's
            choice, usually U. For a log density it is of :math:`U = -\ell`.
        inverse_temperatures: :math:`\beta_0, \dots, \beta_K`, see the module ``tempering``.
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
"""


ANNEALED_LEAPFROG = r"""
    For k from 1 to K, with the potential :math:`U_k = -\beta_k \ell - (1 - \beta_k) \log q`,

    .. math::

        \rho \leftarrow \rho - \tfrac{\varepsilon_k}{2} \nabla U_k(u); \quad
        u \leftarrow u + \varepsilon_k \rho; \quad
        \rho \leftarrow \rho - \tfrac{\varepsilon_k}{2} \nabla U_k(u) =: \hat\rho_k; \quad
        \rho \leftarrow \eta_k \hat\rho_k + \sqrt{1 - \eta_k^2}\, \xi_k,

    the last line not after the last step, at K + 1 gradients of either density: those at a
    position serve the steps on both its sides. A kick :math:`\varepsilon_k \nabla U_k` whose norm
    is above :math:`3 \sqrt{d}` in a row of d numbers is shortened to that. Each step preserves
    volume, whatever the force, and the refreshment is reversible for :math:`N(0, I)`, so that the
    weight

    .. math::

        \frac{p(u_K)}{q(u_0)} \prod_k \frac{N(\hat\rho_k; 0, I)}{N(\rho_{k-1}; 0, I)}

    averages to the normaliser of p.

    Args:
        u: Position per site.
        rho: Momentum per site, shaped as the position.
        gradients: From the positions to :math:`\nabla \ell` per site, :math:`\nabla \log q` per
            site, and an array of the caller's choice, usually :math:`\ell`.
        inverse_temperatures: :math:`\beta_1, \dots, \beta_K`.
        persistence: :math:`\eta_1, \dots, \eta_{K-1}`, each in [0, 1].
        noise: :math:`\xi` per site, shaped as the position below a leading axis of K - 1.
        step_size: :math:`\varepsilon` per site, below a leading axis of K; it broadcasts to the
            site.
        event_dims: The number of event dims per site; the dims to the left of them are rows.

    Returns:
        :math:`u_K` and :math:`\hat\rho_K` per site, :math:`\sum_k \log N(\hat\rho_k) -
        \log N(\rho_{k-1})` per site and number, and the third result of ``gradients`` at
        :math:`u_0` and at :math:`u_K`.

    Raises:
        ValueError: If sites or shapes do not match.

    References:
        Geffner, Domke, *MCMC Variational Inference via Uncorrected Hamiltonian Annealing* (arXiv
        2107.04150); Zhang, Hsu, Li, Finn, Grosse, *Differentiable Annealed Importance Sampling*
        (arXiv 2107.10211).
"""


def check_annealed_flow(
    u: Mapping[str, Array],
    rho: Mapping[str, Array],
    inverse_temperatures: Array,
    persistence: Array,
    noise: Mapping[str, Array],
    step_size: Mapping[str, Array],
) -> None:
    """Check the sites and shapes of an annealed leapfrog's arguments.

    Raises:
        ValueError: If they do not match.
    """
    num_steps = inverse_temperatures.shape[0] if inverse_temperatures.ndim == 1 else 0
    if num_steps < 1:
        raise ValueError(
            "Expected inverse_temperatures of shape (num_steps,), num_steps >= 1; "
            f"got {tuple(inverse_temperatures.shape)}"
        )
    if tuple(persistence.shape) != (num_steps - 1,):
        raise ValueError(
            f"Expected persistence of shape {(num_steps - 1,)}, one entry between two steps; got "
            f"{tuple(persistence.shape)}"
        )
    check_step_sizes(u, rho, step_size, num_steps=num_steps, per_step=True)
    for site, position in u.items():
        expected = (num_steps - 1, *position.shape)
        got = tuple(noise[site].shape) if site in noise else None
        if got != expected:
            raise ValueError(f"Expected noise[{site!r}] of shape {expected}; got {got}")


def clipped(kick: Float[Array, "*rows event"], event_dim: int) -> Float[Array, "*rows event"]:
    """A kick, shortened in each row of d numbers to a norm of at most ``LARGEST_KICK`` sqrt(d)."""
    axes = tuple(range(kick.ndim - event_dim, kick.ndim))
    bound = LARGEST_KICK**2 * math.prod(kick.shape[kick.ndim - event_dim :])
    squared = (kick**2).sum(axes, keepdims=True) if axes else kick**2
    return kick * (bound / squared.clip(min=bound)) ** 0.5


def check_flow(
    u: Mapping[str, Array],
    rho: Mapping[str, Array],
    inverse_temperatures: Array,
    step_size: StepSize,
    *,
    per_step: bool,
) -> None:
    """Check the sites and shapes of a tempered leapfrog's arguments.

    Raises:
        ValueError: If they do not match.
    """
    if inverse_temperatures.ndim != 1 or inverse_temperatures.shape[0] < 2:
        raise ValueError(
            "Expected inverse_temperatures of shape (num_steps + 1,), num_steps >= 1; "
            f"got {tuple(inverse_temperatures.shape)}"
        )
    num_steps = inverse_temperatures.shape[0] - 1
    check_step_sizes(u, rho, step_size, num_steps=num_steps, per_step=per_step)


def check_step_sizes(
    u: Mapping[str, Array],
    rho: Mapping[str, Array],
    step_size: StepSize,
    *,
    num_steps: int,
    per_step: bool,
) -> None:
    """Check that momenta and step sizes are those of the sites.

    Raises:
        ValueError: If they do not match.
    """
    if u.keys() != rho.keys():
        raise ValueError(f"Expected rho of the sites {sorted(u)}; got {sorted(rho)}")
    for site, position in u.items():
        if rho[site].shape != position.shape:
            raise ValueError(
                f"Expected rho[{site!r}] of shape {tuple(position.shape)}; "
                f"got {tuple(rho[site].shape)}"
            )
    if isinstance(step_size, Mapping) and step_size.keys() != u.keys():
        raise ValueError(f"Expected step_size of the sites {sorted(u)}; got {sorted(step_size)}")
    for site, position in u.items():
        shape = tuple(getattr(step_size_of(step_size, site), "shape", ()))
        if per_step and shape[:1] != (num_steps,):
            raise ValueError(
                f"Expected step_size of {site!r} with a leading axis of {num_steps} steps; "
                f"got shape {shape}"
            )
        each = shape[1:] if per_step else shape
        if not _broadcasts(each, position.shape):
            raise ValueError(
                f"Expected step_size of {site!r} to broadcast to {tuple(position.shape)}; "
                f"got shape {each}{' in each step' if per_step else ''}"
            )


def resting(
    step_size: Array, moving: Bool[Array, "*rows"], shape: Sequence[int], *, per_step: bool
) -> Array:
    """The step size of a site, 0 in the rows that are not to move.

    Args:
        step_size: it broadcasts to the site, below a leading axis of steps where there is one.
        moving: which rows, the first axes of the site, are to move.
        shape: that of the site.
        per_step: whether there is an axis of steps.
    """
    moving = moving.reshape((*moving.shape, *(1 for _ in shape[moving.ndim :])))
    if per_step:
        steps, *each = step_size.shape
        step_size = step_size.reshape((steps, *(1 for _ in shape[len(each) :]), *each))
    return namespace(step_size).where(moving, step_size, 0.0)


def step_size_of(step_size: StepSize, site: str) -> float | Array:
    """The step size of a site."""
    return step_size[site] if isinstance(step_size, Mapping) else step_size


def scaled(epsilon: Mapping[str, float | Array], values: Mapping[str, Array]) -> dict[str, Array]:
    """The values of each site times its step size."""
    return {site: epsilon[site] * value for site, value in values.items()}


def with_globals(function: Callable[..., Any], **replacements: object) -> FunctionType:
    """A copy of a function in which some global names mean something else.

    A framework's own code is put to use that way, and its modules stay as they are.

    Args:
        function: a function written in Python, which stays as it is.
        **replacements: what the names mean in the copy.
    """
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__,
        {**function.__globals__, **replacements},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, target) for size, target in zip(reversed(shape), reversed(to), strict=False)
    )

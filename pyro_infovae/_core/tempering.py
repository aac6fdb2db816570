# SPDX-License-Identifier: MIT
r"""Inverse temperatures of a tempered Hamiltonian flow.

The momentum starts at :math:`\mathcal{N}(0, I / \beta_0)` and is multiplied by
:math:`\sqrt{\beta_{k-1} / \beta_k}` after step k of K, so that a schedule ending at
:math:`\beta_K = 1` cools it to its target :math:`\mathcal{N}(0, I)`.
"""

import math
from collections.abc import Callable

from jaxtyping import Float

from pyro_infovae._core.arrays import Array, cast, namespace

Tempering = str | Callable[[Array, int, int], float | Array]
"""A schedule's name, or a callable ``(beta_0, k, num_steps) -> beta_k``."""

INVERSE_TEMPERATURES = r"""
    The ``"quadratic"`` schedule ends at exactly 1:

    .. math:: 1 / \sqrt{\beta_k} = (1 - 1 / \sqrt{\beta_0}) (k / K)^2 + 1 / \sqrt{\beta_0}

    ``"constant"`` is :math:`\beta_k = \beta_0` and ``"none"`` is :math:`\beta_k = 1`, whatever
    ``beta_0``. A callable ``(beta_0, k, num_steps) -> beta_k`` is called for every k from 0 to
    ``num_steps``.

    The momentum is to be drawn at the first entry of the result, which need not be ``beta_0``.
    Gradients reach ``beta_0``.

    Args:
        beta_0: Initial inverse temperature, in (0, 1]. An array's value is not checked, and the
            result has its dtype and device.
        num_steps: Number of leapfrog steps K.
        tempering: The schedule.

    Returns:
        :math:`\beta_0, \dots, \beta_K`, of shape ``(num_steps + 1,)``.

    Raises:
        ValueError: If ``beta_0`` or ``num_steps`` is out of range, ``tempering`` is unknown, or a
            callable returns anything but positive scalars.

    References:
        Caterini, Doucet, Sejdinovic, *Hamiltonian Variational Auto-Encoder* (arXiv 1805.11328).
"""


def check_beta_0(beta_0: float | Float[Array, ""]) -> None:
    """Check the initial inverse temperature where it is a number.

    Raises:
        ValueError: If it is not in (0, 1].
    """
    if isinstance(beta_0, int | float) and not 0 < beta_0 <= 1:
        raise ValueError(f"Expected 0 < beta_0 <= 1; got {beta_0}")


def inverse_temperatures(
    beta_0: Float[Array, ""], num_steps: int, tempering: Tempering = "quadratic"
) -> Float[Array, " num_steps+1"]:
    """The schedule of an initial inverse temperature that is an array; see the text above."""
    if num_steps < 1:
        raise ValueError(f"Expected num_steps >= 1; got {num_steps}")
    if beta_0.shape != ():
        raise ValueError(f"Expected beta_0 of shape (); got {tuple(beta_0.shape)}")

    xp = namespace(beta_0)
    if callable(tempering):
        values = [
            _scalar(tempering(beta_0, k, num_steps), f"tempering(beta_0, {k}, {num_steps})", beta_0)
            for k in range(num_steps + 1)
        ]
        return xp.stack(values)
    ones = xp.broadcast_to(xp.ones_like(beta_0), (num_steps + 1,))
    if tempering == "quadratic":
        progress = ((xp.cumsum(ones, 0) - 1) / num_steps) ** 2
        return (progress + (1 - progress) * beta_0**-0.5) ** -2
    if tempering == "constant":
        return xp.broadcast_to(beta_0, (num_steps + 1,))
    if tempering == "none":
        return ones
    raise ValueError(
        "Expected tempering 'quadratic', 'constant', 'none', in an objective also 'free', or a "
        f"callable (beta_0, k, num_steps) -> beta_k; got {tempering!r} "
        "(here, 'free' is free_inverse_temperatures(factors))"
    )


def free_inverse_temperatures(
    factors: Float[Array, " num_steps"],
) -> Float[Array, " num_steps+1"]:
    r"""Inverse temperatures from the momentum's own factors, one per step.

    .. math:: \alpha_k = \sqrt{\beta_{k-1} / \beta_k}, \qquad \beta_k = \prod_{j > k} \alpha_j^2

    So :math:`\beta_0 = \prod_j \alpha_j^2` and :math:`\beta_K = 1`. Equal factors
    :math:`\beta_0^{1 / 2K}` give the geometric schedule :math:`\beta_k = \beta_0^{1 - k/K}`.

    Args:
        factors: :math:`\alpha_1, \dots, \alpha_K`, each in (0, 1), which is not checked. Gradients
            reach them.

    Returns:
        :math:`\beta_0, \dots, \beta_K`, of shape ``(num_steps + 1,)``.

    Raises:
        ValueError: If ``factors`` is not a vector of at least one factor.

    References:
        Caterini, Doucet, Sejdinovic, *Hamiltonian Variational Auto-Encoder* (arXiv 1805.11328),
        "free tempering".

    Example:
        >>> import numpy as np
        >>> free_inverse_temperatures(np.array([0.5, 0.5]))
        array([0.0625, 0.25  , 1.    ])
    """
    if factors.ndim != 1 or factors.shape[0] < 1:
        raise ValueError(
            f"Expected factors of shape (num_steps,), num_steps >= 1; got {tuple(factors.shape)}"
        )
    xp = namespace(factors)
    # Summed logarithms: the backward of torch's cumprod reads values back to the host.
    remaining = xp.flip(xp.cumsum(xp.flip(xp.log(factors), (0,)), 0), (0,))
    return xp.concatenate([xp.exp(2 * remaining), xp.ones_like(factors[:1])])


def _scalar(value: float | Array, call: str, like: Float[Array, ""]) -> Float[Array, ""]:
    xp = namespace(like)
    if isinstance(value, int | float):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"Expected {call} to be positive and finite; got {value}")
        return xp.full_like(like, value)
    if value.shape != ():
        raise ValueError(f"Expected {call} to be a scalar; got shape {tuple(value.shape)}")
    return cast(value, like.dtype)

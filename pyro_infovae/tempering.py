# SPDX-License-Identifier: MIT
r"""Inverse temperatures of a tempered Hamiltonian flow.

The momentum starts at :math:`\mathcal{N}(0, I / \beta_0)` and is multiplied by
:math:`\sqrt{\beta_{k-1} / \beta_k}` after step k of K, so that a schedule ending at
:math:`\beta_K = 1` cools it to its target :math:`\mathcal{N}(0, I)`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Tempering", "free_inverse_temperatures", "inverse_temperatures"]

Tempering = str | Callable[[Tensor, int, int], float | Tensor]
"""A schedule's name, or a callable ``(beta_0, k, num_steps) -> beta_k``."""


def inverse_temperatures(
    beta_0: float | Float[Tensor, ""], num_steps: int, tempering: Tempering = "quadratic"
) -> Float[Tensor, " num_steps+1"]:
    r"""Inverse temperatures of ``num_steps`` tempered leapfrog steps.

    The ``"quadratic"`` schedule ends at exactly 1:

    .. math:: 1 / \sqrt{\beta_k} = (1 - 1 / \sqrt{\beta_0}) (k / K)^2 + 1 / \sqrt{\beta_0}

    ``"constant"`` is :math:`\beta_k = \beta_0` and ``"none"`` is :math:`\beta_k = 1`, whatever
    ``beta_0``. A callable ``(beta_0, k, num_steps) -> beta_k`` is called for every k from 0 to
    ``num_steps``.

    The momentum is to be drawn at the first entry of the result, which need not be ``beta_0``.
    Gradients reach ``beta_0``.

    Args:
        beta_0: Initial inverse temperature, in (0, 1]. A tensor's value is not checked, and the
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

    Example:
        >>> inverse_temperatures(0.25, 2)
        tensor([0.2500, 0.3265, 1.0000])
    """
    if num_steps < 1:
        raise ValueError(f"Expected num_steps >= 1; got {num_steps}")
    if not isinstance(beta_0, Tensor):
        if not 0 < beta_0 <= 1:
            raise ValueError(f"Expected 0 < beta_0 <= 1; got {beta_0}")
        beta_0 = torch.tensor(beta_0, dtype=torch.get_default_dtype())
    if beta_0.shape != ():
        raise ValueError(f"Expected beta_0 of shape (); got {tuple(beta_0.shape)}")

    if callable(tempering):
        values = [
            _scalar(tempering(beta_0, k, num_steps), f"tempering(beta_0, {k}, {num_steps})", beta_0)
            for k in range(num_steps + 1)
        ]
        return torch.stack(values)
    if tempering == "quadratic":
        steps = torch.arange(num_steps + 1, dtype=beta_0.dtype, device=beta_0.device)
        progress = (steps / num_steps) ** 2
        return (progress + (1 - progress) * beta_0.rsqrt()) ** -2
    if tempering == "constant":
        return beta_0.expand(num_steps + 1)
    if tempering == "none":
        return beta_0.new_ones(num_steps + 1)
    raise ValueError(
        "Expected tempering 'quadratic', 'constant', 'none', in an objective also 'free', or a "
        f"callable (beta_0, k, num_steps) -> beta_k; got {tempering!r} "
        "(here, 'free' is free_inverse_temperatures(factors))"
    )


def free_inverse_temperatures(
    factors: Float[Tensor, " num_steps"],
) -> Float[Tensor, " num_steps+1"]:
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
        >>> free_inverse_temperatures(torch.tensor([0.5, 0.5]))
        tensor([0.0625, 0.2500, 1.0000])
    """
    if factors.dim() != 1 or factors.shape[0] < 1:
        raise ValueError(
            f"Expected factors of shape (num_steps,), num_steps >= 1; got {tuple(factors.shape)}"
        )
    # Summed logarithms: the backward of cumprod reads values back to the host.
    remaining = factors.log().flip(0).cumsum(0).flip(0)
    return torch.cat([(2 * remaining).exp(), factors.new_ones(1)])


def _scalar(value: float | Tensor, call: str, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.shape != ():
            raise ValueError(f"Expected {call} to be a scalar; got shape {tuple(value.shape)}")
        return value.to(like)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"Expected {call} to be positive and finite; got {value}")
    return like.new_tensor(value)

# SPDX-License-Identifier: MIT
"""The scale of a flow's steps, which shrinks while the flow does harm or the guide's work."""

from __future__ import annotations

import warnings

from jaxtyping import Float

from pyro_infovae._core.arrays import Array, namespace

HARM = -1.0
"""The mean gain per row, in nats, below which a flow does harm."""

FAR = 10.0
"""The gain per number, in nats, above which a flow does what is left to the guide.

A flow that carries the draws of a guide from far away has the guide stay there: the bound tells
little of where it is, so that it drifts.
"""

_WORST = 20.0
_MEMORY, _SHRINK, _GROW, _RETURN = 0.9, 0.5, 1.01, 1.1


def start() -> tuple[float, float, float, float]:
    """What is known before the first step: see :func:`adapted`."""
    return 0.0, 1.0, 1.0, 1.0


def scale_of(state: Float[Array, 4]) -> Float[Array, ""]:
    """The scale of the steps."""
    return state[1] * state[2]


def adapted(state: Float[Array, 4], gain: Float[Array, ""], numbers: float) -> Float[Array, 4]:
    """What is known after one more evaluation.

    The mean forgets, so that the noise of a single draw shrinks nothing. One catastrophe does. So
    does a gain that a flow near the posterior cannot have.

    Args:
        state: the mean gain per row, in nats, and two factors of the scale of the steps: one that
            shrinks while the flow does harm, one while the guide is far from the posterior; and
            the least that the first of them has been.
        gain: by how much the flow's bound is above that of its unmoved draw, per row.
        numbers: how many numbers of a row flow.

    Example:
        >>> import numpy as np
        >>> adapted(np.array(start()), np.array(-1e6), 2)
        array([0. , 0.5, 1. , 0.5])
        >>> adapted(np.array([0.5, 0.5, 0.5, 0.5]), np.array(0.5), 2)
        array([0.5  , 0.505, 0.55 , 0.5  ])
        >>> adapted(np.array(start()), np.array(40.0), 2)[2]
        np.float64(0.5)
    """
    xp = namespace(gain)
    near = xp.where(state[2] * _RETURN < 1, state[2] * _RETURN, 1.0)
    near = xp.where(gain > FAR * numbers, _SHRINK * state[2], near)
    # Nan is the worst: no comparison with it holds.
    gain = xp.where(gain > -_WORST, gain, -_WORST)
    mean = _MEMORY * state[0] + (1 - _MEMORY) * xp.where(gain < _WORST, gain, _WORST)
    is_harm = mean < HARM
    grown = xp.where(state[1] * _GROW < 1, state[1] * _GROW, 1.0)
    safe = xp.where(is_harm, _SHRINK * state[1], grown)
    least = xp.where(safe < state[3], safe, state[3])
    return xp.stack([xp.where(is_harm, 0.0, mean), safe, near, least])


def did_harm(state: Float[Array, 4]) -> bool:
    """Whether the flow has ever done harm."""
    return bool(state[3] < 1)


def warn_of_harm(stacklevel: int = 4) -> None:
    """Warn that a flow does harm."""
    warnings.warn(
        "TraceHamiltonian_ELBO: the flow's bound is more than a nat per row below that of the "
        "guide's own draws, so that its steps are scaled down: lower step_size if this goes on, "
        "and look for a guide whose scale is far from the posterior's",
        stacklevel=stacklevel,
    )

# SPDX-License-Identifier: MIT
"""The scale of a flow's steps, which shrinks while the flow does harm."""

from __future__ import annotations

import warnings

from jaxtyping import Float

from pyro_infovae._core.arrays import Array, namespace

HARM = -1.0
"""The mean gain per row, in nats, below which a flow does harm."""

_WORST = 20.0
_MEMORY, _SHRINK, _GROW = 0.9, 0.5, 1.01


def start() -> tuple[float, float]:
    """What is known before the first step: the mean gain in nats, and the scale of the steps."""
    return 0.0, 1.0


def adapted(state: Float[Array, 2], gain: Float[Array, ""]) -> Float[Array, 2]:
    """The mean gain and the scale of the steps after one more evaluation.

    The mean forgets, so that the noise of a single draw shrinks nothing. One catastrophe does.

    Args:
        state: the mean gain per row, in nats, and the scale of the steps.
        gain: by how much the flow's bound is above that of its unmoved draw, per row.

    Example:
        >>> import numpy as np
        >>> adapted(np.array(start()), np.array(-1e6))
        array([0. , 0.5])
        >>> adapted(np.array([0.5, 0.5]), np.array(0.5))
        array([0.5  , 0.505])
    """
    xp = namespace(gain)
    # Nan is the worst: no comparison with it holds.
    gain = xp.where(gain > -_WORST, gain, -_WORST)
    mean = _MEMORY * state[0] + (1 - _MEMORY) * xp.where(gain < _WORST, gain, _WORST)
    is_harm = mean < HARM
    grown = xp.where(state[1] * _GROW < 1, state[1] * _GROW, 1.0)
    return xp.stack([xp.where(is_harm, 0.0, mean), xp.where(is_harm, _SHRINK * state[1], grown)])


def warn_of_harm() -> None:
    """Warn that a flow does harm."""
    warnings.warn(
        "TraceHamiltonian_ELBO: the flow's bound is more than a nat per row below that of the "
        "guide's own draws, so that its steps are scaled down: lower step_size if this goes on, "
        "and look for a guide whose scale is far from the posterior's",
        stacklevel=4,
    )

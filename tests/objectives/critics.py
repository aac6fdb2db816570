"""A critic that keeps what it is shown, and a regulariser that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.halves import Half


def recording(half: Half, log: list[Any], *, x_dim: int = 3, z_dim: int = 2) -> Any:
    """Two layers, on data of whatever shape."""
    rng = np.random.default_rng(11)
    params = {
        "x_weight": 0.5 * rng.normal(size=(x_dim, 4)),
        "z_weight": 0.5 * rng.normal(size=(z_dim, 4)),
        "out": rng.normal(size=4),
    }

    def score(params: Any, x: Any, z: Any) -> Any:
        log.append((x, z))
        flat = 1.0 * x.reshape(len(x), -1)
        return half.xp.tanh(flat @ params["x_weight"] + z @ params["z_weight"]) @ params["out"]

    return half.critic(score, params)


def keep(log: list[Any]) -> Callable[[Any], Any]:
    """A regulariser that adds nothing and keeps data and codes."""

    def regularizer(rows: Any) -> Any:
        log.append((rows.data["x"], rows.values))
        return 0.0 * rows.values.sum()

    return regularizer

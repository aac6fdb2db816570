"""Kernels that both halves make alike."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

KERNELS: dict[str, Callable[[Any], Any]] = {
    "rbf": lambda k: k.RBF(),
    "rbf-sequence": lambda k: k.RBF([0.5, 2.0]),
    "rbf-sum": lambda k: k.RBF(1.0) + k.RBF(2.0),
    "zhao": lambda k: k.RBF.zhao(),
    "autoencodertoolkit": lambda k: k.RBF.autoencodertoolkit(0.7),
    "imq": lambda k: k.IMQ(),
    "wae": lambda k: k.IMQ.wae(prior_scale=2.0),
    "mixed-sum": lambda k: k.RBF() + k.IMQ(3.0),
    "callable": lambda k: lambda x, y: (x @ y.T + 1) ** 2,
}


def assert_close(got: Any, want: Any) -> None:
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-12, atol=1e-12)

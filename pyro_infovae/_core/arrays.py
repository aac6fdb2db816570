# SPDX-License-Identifier: MIT
"""One formula for the arrays of torch, JAX and NumPy, none of which is imported here.

torch takes NumPy's names for most functions and their arguments, so the libraries' own modules
serve as they are; ``array-api-compat`` would wrap every call, at a price in eager torch, and knows
neither `logsumexp` nor `log_sigmoid`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, TypeAlias

from jaxtyping import Float, Shaped

Array: TypeAlias = Any
"""An array of torch, JAX or NumPy."""


def library(*arrays: Array) -> str:
    """The library of some arrays: ``"torch"``, ``"jax"`` or, where neither is met, ``"numpy"``.

    Args:
        *arrays: arrays; numbers, None and NumPy's own among them tell nothing, as JAX takes these.
    """
    for array in arrays:
        if (name := _library_of_type(array.__class__)) is not None:
            return name
    return "numpy"


def namespace(*arrays: Array) -> Any:
    """The module with the functions of an array's library, under NumPy's names.

    Args:
        *arrays: arrays; numbers and None among them tell nothing.

    Example:
        >>> import numpy as np
        >>> namespace(np.zeros(3)).__name__
        'numpy'
    """
    name = library(*arrays)
    return sys.modules["jax.numpy" if name == "jax" else name]


def logsumexp(values: Float[Array, "*axes"], axis: int | None = None) -> Float[Array, "*axes"]:
    """The logarithm of the sum of exponentials along an axis, or along all."""
    match library(values):
        case "torch":
            axes = tuple(range(values.ndim)) if axis is None else axis
            return sys.modules["torch"].logsumexp(values, axes)
        case "jax":
            return sys.modules["jax.nn"].logsumexp(values, axis)
    return namespace(values).logaddexp.reduce(values, axis)


def log_sigmoid(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""The logarithm of :math:`1 / (1 + e^{-x})`."""
    match library(values):
        case "torch":
            return sys.modules["torch"].nn.functional.logsigmoid(values)
        case "jax":
            return sys.modules["jax.nn"].log_sigmoid(values)
    return -namespace(values).logaddexp(0.0, -values)


def cast(values: Shaped[Array, "*shape"], dtype: Any) -> Shaped[Array, "*shape"]:
    """An array in another dtype of its library."""
    return values.to(dtype) if library(values) == "torch" else values.astype(dtype)


def raised(values: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """An array in float32 where it is in half precision, itself where it is not.

    Example:
        >>> import numpy as np
        >>> raised(np.ones((), dtype=np.float16)).dtype
        dtype('float32')
    """
    half = values.dtype.itemsize < 4
    return cast(values, namespace(values).float32) if half else values


@cache
def _library_of_type(kind: type) -> str | None:
    roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
    return next((name for name in ("torch", "jax") if name in roots), None)

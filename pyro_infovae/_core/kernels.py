# SPDX-License-Identifier: MIT
"""Kernels between the rows of two arrays, and the conventions met in other libraries."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self, TypeAlias, final

from jaxtyping import Float

from pyro_infovae._core.arrays import Array, library, namespace

Kernel: TypeAlias = Callable[[Float[Array, "n d"], Float[Array, "m d"]], Float[Array, "n m"]]
"""Any function of two sets of rows that returns the matrix of their pairs."""

SQUARED_DISTANCES: dict[str, Kernel] = {}
"""The squared distances of all pairs, by the library of the rows; each half adds its own."""


class RadialKernel(ABC):
    r"""A kernel :math:`k(x, y) = f(\|x - y\|^2)`.

    A subclass supplies the profile :math:`f` and its slope :math:`f'`: with them
    ``mmd_squared`` sums over all pairs in blocks and never holds their matrix. Both are
    elementwise and may depend on the number of features.
    """

    @abstractmethod
    def profile(self, squared_distance: Array, num_features: int) -> Array:
        r"""Return :math:`f(r^2)`, of the shape of ``squared_distance``; differentiable."""

    @abstractmethod
    def profile_and_slope(self, squared_distance: Array, num_features: int) -> tuple[Array, Array]:
        r"""Return :math:`f(r^2)` and :math:`f'(r^2)`: new arrays, which may be changed."""

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Return the kernel of all pairs of a row of x and a row of y."""
        return self.profile(SQUARED_DISTANCES[library(x, y)](x, y), x.shape[-1])

    def __add__(self, other: RadialKernel) -> SumKernel:
        if not isinstance(other, RadialKernel):
            return NotImplemented
        return SumKernel((*_terms(self), *_terms(other)))


@final
@dataclass(frozen=True, init=False)
class RBF(RadialKernel):
    r"""The Gaussian kernel, or a sum of Gaussian kernels.

    .. math:: k(x, y) = \sum_\ell \exp\left(-\frac{\|x - y\|^2}{2 \ell^2}\right)

    Args:
        lengthscale: :math:`\ell`, or a sequence of them to sum over. Default: :math:`\sqrt d`
            for rows of ``d`` features.
        dimension_power: each lengthscale is multiplied by ``d ** dimension_power``. Default: 0,
            or 1/2 where ``lengthscale`` is left out.

    Raises:
        ValueError: if a lengthscale is not positive and finite.

    Example:
        >>> import numpy as np
        >>> RBF(1.0).profile(np.array([0.0, 2.0]), num_features=2).round(4)
        array([1.    , 0.3679])
        >>> RBF.zhao()
        RBF(lengthscale=(0.7071067811865476,), dimension_power=1.0)
    """

    lengthscale: tuple[float, ...]
    dimension_power: float

    def __init__(
        self,
        lengthscale: float | Sequence[float] | None = None,
        *,
        dimension_power: float | None = None,
    ) -> None:
        default_power = 0.5 if lengthscale is None else 0.0
        power = default_power if dimension_power is None else dimension_power
        object.__setattr__(self, "lengthscale", _positive("lengthscale", lengthscale, default=1.0))
        object.__setattr__(self, "dimension_power", power)

    @classmethod
    def zhao(cls) -> Self:
        r"""Return :math:`\exp(-\|x - y\|^2 / d^2)`: the InfoVAE paper's code, and Posit's port."""
        return cls(math.sqrt(0.5), dimension_power=1.0)

    @classmethod
    def autoencodertoolkit(cls, rho: float) -> Self:
        r"""Return :math:`\exp(-\|x - y\|^2 / (\rho^2 d))`, as in AutoEncoderToolkit.jl."""
        return cls(math.sqrt(0.5) * rho, dimension_power=0.5)

    def lengthscales(self, num_features: int) -> tuple[float, ...]:
        """Return the lengthscales for rows of ``num_features`` features."""
        return tuple(s * num_features**self.dimension_power for s in self.lengthscale)

    def profile(self, squared_distance: Array, num_features: int) -> Array:
        r"""Return the sum of :math:`\exp(-r^2 / 2 \ell^2)` over the lengthscales."""
        xp = namespace(squared_distance)
        return _sum(xp.exp(squared_distance * rate) for rate in self._rates(num_features))

    def profile_and_slope(self, squared_distance: Array, num_features: int) -> tuple[Array, Array]:
        r"""Return the sum and its derivative in :math:`r^2`."""

        def term(rate: float) -> tuple[Array, Array]:
            value = namespace(squared_distance).exp(squared_distance * rate)
            return value, value * rate

        return _sum_terms(term(rate) for rate in self._rates(num_features))

    def _rates(self, num_features: int) -> tuple[float, ...]:
        return tuple(-0.5 / s**2 for s in self.lengthscales(num_features))


@final
@dataclass(frozen=True, init=False)
class IMQ(RadialKernel):
    r"""The inverse multiquadratic kernel, or a sum of them.

    .. math:: k(x, y) = \sum_C \frac{C}{C + \|x - y\|^2}

    Its tails are heavier than the Gaussian kernel's: rows far from every other still feel a pull.

    Args:
        scale: :math:`C`, or a sequence of them to sum over. Default: :math:`2 d` for rows of
            ``d`` features.
        dimension_power: each scale is multiplied by ``d ** dimension_power``. Default: 0, or 1
            where ``scale`` is left out.

    Raises:
        ValueError: if a scale is not positive and finite.

    Example:
        >>> import numpy as np
        >>> IMQ(2.0).profile(np.array([0.0, 2.0]), num_features=2)
        array([1. , 0.5])
    """

    scale: tuple[float, ...]
    dimension_power: float

    def __init__(
        self,
        scale: float | Sequence[float] | None = None,
        *,
        dimension_power: float | None = None,
    ) -> None:
        default_power = 1.0 if scale is None else 0.0
        power = default_power if dimension_power is None else dimension_power
        object.__setattr__(self, "scale", _positive("scale", scale, default=2.0))
        object.__setattr__(self, "dimension_power", power)

    @classmethod
    def wae(cls, prior_scale: float = 1.0) -> Self:
        r"""Return the sum over :math:`C = 2 d \sigma^2 s`, s in {.1, .2, .5, 1, 2, 5, 10}.

        The kernel of WAE-MMD's and pythae's code, for a prior of scale :math:`\sigma`.
        Wasserstein Auto-Encoders, arXiv 1711.01558.
        """
        multiples = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
        return cls([2.0 * prior_scale**2 * s for s in multiples], dimension_power=1.0)

    def scales(self, num_features: int) -> tuple[float, ...]:
        """Return the scales for rows of ``num_features`` features."""
        return tuple(c * num_features**self.dimension_power for c in self.scale)

    def profile(self, squared_distance: Array, num_features: int) -> Array:
        r"""Return the sum of :math:`C / (C + r^2)` over the scales."""
        xp = namespace(squared_distance)
        return _sum(xp.reciprocal(squared_distance / c + 1) for c in self.scales(num_features))

    def profile_and_slope(self, squared_distance: Array, num_features: int) -> tuple[Array, Array]:
        r"""Return the sum and its derivative in :math:`r^2`."""

        def term(c: float) -> tuple[Array, Array]:
            value = squared_distance / c
            value += 1
            value **= -1
            slope = value * value
            slope /= -c
            return value, slope

        return _sum_terms(term(c) for c in self.scales(num_features))


@final
@dataclass(frozen=True)
class SumKernel(RadialKernel):
    """The sum of several radial kernels; ``k1 + k2`` makes one.

    Example:
        >>> RBF(1.0) + IMQ(2.0) == SumKernel((RBF(1.0), IMQ(2.0)))
        True
    """

    terms: tuple[RadialKernel, ...]

    def profile(self, squared_distance: Array, num_features: int) -> Array:
        """Return the sum of the terms' profiles."""
        return _sum(k.profile(squared_distance, num_features) for k in self.terms)

    def profile_and_slope(self, squared_distance: Array, num_features: int) -> tuple[Array, Array]:
        """Return the sums of the terms' profiles and slopes."""
        return _sum_terms(k.profile_and_slope(squared_distance, num_features) for k in self.terms)


def rbf_lengthscales(kernel: Kernel, num_features: int) -> tuple[float, ...]:
    """Return the lengthscales of an RBF or a sum of RBFs.

    Raises:
        ValueError: if the kernel is anything else.
    """
    if isinstance(kernel, RBF):
        return kernel.lengthscales(num_features)
    if isinstance(kernel, SumKernel) and all(isinstance(k, RBF | SumKernel) for k in kernel.terms):
        return sum((rbf_lengthscales(k, num_features) for k in kernel.terms), ())
    raise ValueError(
        f"Expected an RBF or a sum of RBFs, whose mean under normals has a closed form; "
        f"got {kernel!r}. Use estimator='unbiased'."
    )


def _positive(
    name: str, scales: float | Sequence[float] | None, *, default: float
) -> tuple[float, ...]:
    if scales is None:
        return (default,)
    values = tuple(float(s) for s in scales) if isinstance(scales, Sequence) else (float(scales),)
    if not values or not all(s > 0 and math.isfinite(s) for s in values):
        raise ValueError(f"Expected positive, finite {name}; got {name}={scales}.")
    return values


def _terms(kernel: RadialKernel) -> tuple[RadialKernel, ...]:
    return kernel.terms if isinstance(kernel, SumKernel) else (kernel,)


def _sum(values: Iterable[Array]) -> Array:
    return reduce(operator.add, values)


def _sum_terms(terms: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Sum (value, slope) terms into the first of them, where arrays are mutable."""
    terms = iter(terms)
    value, slope = next(terms)
    for other_value, other_slope in terms:
        value += other_value
        slope += other_slope
    return value, slope

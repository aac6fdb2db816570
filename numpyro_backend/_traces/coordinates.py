# SPDX-License-Identifier: MIT
"""The coordinates that a flow moves the sites of a guide in, by default the guide's own noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float
from numpyro.distributions import (
    Distribution,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from numpyro.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    LowerCholeskyAffine,
    Transform,
)
from numpyro.distributions.util import sum_rightmost

from numpyro_backend._traces.flow import finite_rows, inverse, to_support, where_rows
from numpyro_backend._traces.recording import undecorated


@dataclass(frozen=True)
class Coordinates:
    r"""Unconstrained coordinates of the draws of a distribution: z = T(u).

    Attributes:
        name: the name of its site.
        fn: the distribution of z.
        transform: T.
        is_noise: whether u is standard normal noise.
    """

    name: str
    fn: Distribution
    transform: Transform
    is_noise: bool

    def position(self, value: Array, intermediates: Any) -> tuple[Array, Bool[Array, "*batch"]]:
        """The position of a draw, and which rows have one; the others are put at 0.

        Args:
            value: the draw.
            intermediates: what it was computed from, as NumPyro passes it.
        """
        if not self.is_noise:
            return inverse(value, self.transform, self.fn.event_dim)
        # As of a draw whose noise is not known: one on the edge of the support has no position.
        support, event_dim = to_support(self.fn, self.name), self.fn.event_dim
        _, inside = inverse(jax.lax.stop_gradient(value), support, event_dim)
        transform = self.transform
        if intermediates:  # the inverse of a flow is expensive, or unknown
            transform, value = transform.parts[0], intermediates[0][0]
        # The noise depends on no parameter.
        u = jax.lax.stop_gradient(transform.inv(value))
        inside = inside & finite_rows(u, inside.ndim)
        return where_rows(inside, u, jnp.zeros_like(u)), inside

    def middle(self, value: Array) -> Array:
        """A value inside the support, of the shape of a draw."""
        support = to_support(self.fn, self.name)
        return support(jnp.zeros(support.inverse_shape(value.shape), value.dtype))

    def value(self, u: Array) -> tuple[Array, Float[Array, "*batch"]]:
        """The value z at a position, and log|det J_T(u)| of each row."""
        z, intermediates = self.transform.call_with_intermediates(u)
        density = self.transform.log_abs_det_jacobian(u, z, intermediates)
        return z, sum_rightmost(density, density.ndim - (z.ndim - self.fn.event_dim))

    def log_density(self, u: Array, z: Array, log_jacobian: Array) -> Float[Array, "*batch"]:
        """The log density of each row of u.

        Args:
            u: the position.
            z: the value there.
            log_jacobian: of each row.

        Raises:
            NotImplementedError: for a distribution that cannot be evaluated there.
        """
        if self.is_noise:
            return sum_rightmost(-0.5 * (u**2 + math.log(2 * math.pi)), u.ndim - log_jacobian.ndim)
        try:
            return self.fn.log_prob(z) + log_jacobian
        except NotImplementedError as error:
            raise NotImplementedError(
                f"The density of site '{self.name}', a {type(undecorated(self.fn)).__name__} of "
                "the guide, cannot be evaluated where the flow moves it: use precondition='guide', "
                "or path='posterior'"
            ) from error


def coordinates(name: str, fn: Distribution, *, in_guide_units: bool) -> Coordinates:
    """The coordinates of a site of the guide.

    Args:
        name: its name.
        fn: its distribution.
        in_guide_units: whether a unit of length is the scale of the distribution, as far as it
            tells of one; else it is one of the unconstrained space.

    Raises:
        NotImplementedError: for a support that no known transform reaches.
    """
    if in_guide_units and (parts := _from_noise(fn)):
        return Coordinates(name, fn, ComposeTransform(parts), is_noise=True)
    transform = to_support(fn, name)
    if in_guide_units and (scale := _scale(fn, transform)) is not None:
        transform = ComposeTransform([AffineTransform(0.0, scale), transform])
    return Coordinates(name, fn, transform, is_noise=False)


def _from_noise(fn: Distribution) -> list[Transform]:
    """From standard normal noise to the draws of a distribution that is made of it, or nothing."""
    fn = undecorated(fn)
    if isinstance(fn, Normal):
        return [AffineTransform(fn.loc, fn.scale)]
    if isinstance(fn, MultivariateNormal):
        return [LowerCholeskyAffine(fn.loc, fn.scale_tril)]
    if not isinstance(fn, TransformedDistribution):
        return []
    if any(isinstance(transform, AbsTransform) for transform in fn.transforms):
        return []  # no bijection
    inner = _from_noise(fn.base_dist)
    return [*inner, *fn.transforms] if inner else []


def _scale(fn: Distribution, transform: Transform) -> Array | None:
    """The standard deviation in the unconstrained space, to the first order; 1 if unknown."""
    if not _is_elementwise(transform):
        return None
    try:
        mean, variance = fn.mean, fn.variance
    except (NotImplementedError, AttributeError):
        return None
    mean = jnp.where(jnp.isfinite(mean), mean, transform(jnp.zeros_like(mean)))
    _, slope = jax.jvp(transform.inv, (mean,), (jnp.ones_like(mean),))
    variance = variance * slope**2
    known = jnp.isfinite(variance) & (variance > 0)
    return jnp.where(known, jnp.sqrt(jnp.where(known, variance, 1.0)), 1.0)


def _is_elementwise(transform: Transform) -> bool:
    if isinstance(transform, IndependentTransform):
        return _is_elementwise(transform.base_transform)
    return transform.domain.event_dim == transform.codomain.event_dim == 0

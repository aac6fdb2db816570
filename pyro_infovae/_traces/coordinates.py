# SPDX-License-Identifier: MIT
"""The coordinates that a flow moves the sites of a guide in, by default the guide's own noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from pyro.distributions.transforms import LowerCholeskyAffine
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    MultivariateNormal,
    Normal,
    Transform,
    TransformedDistribution,
)

from pyro_infovae._arrays.full_precision import raised
from pyro_infovae._traces.flow import finite_rows, inverse, to_support
from pyro_infovae._traces.recording import undecorated


class Distribution(Protocol):
    """What is asked of a distribution of Pyro or torch."""

    event_dim: int
    support: Any

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of each row."""


@dataclass(frozen=True)
class Coordinates:
    r"""Unconstrained coordinates of the draws of a distribution: z = T(u).

    Attributes:
        fn: the distribution of z.
        transform: T.
        is_noise: whether u is standard normal noise.
        support: from the unconstrained space to the support, or None where these are the same.
    """

    fn: Distribution
    transform: Transform
    is_noise: bool
    support: Transform | None = None

    def position(self, value: Tensor) -> tuple[Tensor, Bool[Tensor, ...]]:
        """The position of a draw, and which rows have one; the others are put at 0."""
        value = raised(value)
        if not self.is_noise:
            return inverse(value, self.transform, self.fn.event_dim)
        # The noise depends on no parameter.
        with torch.no_grad():
            u = self.transform.inv(value)
        inside = finite_rows(u, value.dim() - self.fn.event_dim)
        if self.support is not None:
            inside = inside & inverse(value, self.support, self.fn.event_dim)[1]
        return torch.where(u.isfinite(), u, 0.0), inside

    def log_jacobian(self, u: Tensor, z: Tensor) -> Float[Tensor, ...]:
        """log|det J_T(u)| of each row."""
        density = self.transform.log_abs_det_jacobian(u, z)
        return sum_rightmost(density, density.dim() - (z.dim() - self.fn.event_dim))

    def log_density(self, u: Tensor, batch_dim: int) -> Float[Tensor, ...]:
        """The log density of each row, of so many dims; but for a constant where u is noise."""
        if self.is_noise:
            return sum_rightmost(-0.5 * u**2, u.dim() - batch_dim)
        z = self.transform(u)
        return self.fn.log_prob(z) + self.log_jacobian(u, z)


def coordinates(name: str, fn: Distribution, *, in_guide_units: bool) -> Coordinates:
    """The coordinates of a site of the guide.

    Args:
        name: its name, for messages.
        fn: its distribution.
        in_guide_units: whether a unit of length is the scale of the distribution, as far as it
            tells of one; else it is one of the unconstrained space.

    Raises:
        NotImplementedError: for a support that no known transform reaches.
    """
    if in_guide_units and (transform := _from_noise(fn)) is not None:
        is_real = not isinstance(transform, ComposeTransform)
        support = None if is_real else _unless_identity(to_support(fn, name))
        return Coordinates(fn, transform, is_noise=True, support=support)
    transform = to_support(fn, name)
    support = _unless_identity(transform)
    if in_guide_units and (scale := _scale(fn, transform)) is not None:
        stretch = AffineTransform(0.0, scale, event_dim=transform.domain.event_dim)
        transform = ComposeTransform([stretch, transform])
    return Coordinates(fn, transform, is_noise=False, support=support)


def _from_noise(fn: Any) -> Transform | None:
    """From standard normal noise to the draws of a distribution that is made of it."""
    event_dim, fn = len(fn.event_shape), undecorated(fn)
    if isinstance(fn, Normal):
        return AffineTransform(fn.loc, fn.scale, event_dim=event_dim)
    if isinstance(fn, MultivariateNormal):
        return _CholeskyAffine(fn.loc, fn.scale_tril)
    if isinstance(fn, TransformedDistribution) and all(t.bijective for t in fn.transforms):
        inner = _from_noise(fn.base_dist)
        return None if inner is None else ComposeTransform([inner, *fn.transforms])
    return None


def _unless_identity(transform: Transform) -> Transform | None:
    inner = transform
    while isinstance(inner, IndependentTransform):
        inner = inner.base_transform
    is_identity = isinstance(inner, ComposeTransform) and not inner.parts
    return None if is_identity else transform


class _CholeskyAffine(LowerCholeskyAffine):
    """Pyro's transform, for a matrix per row too."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])


def _scale(fn: Any, transform: Transform) -> Tensor | None:
    """The standard deviation in the unconstrained space, to the first order; 1 if unknown."""
    if transform.domain.event_dim > fn.event_dim or transform.codomain.event_dim > fn.event_dim:
        return None
    if not _is_elementwise(transform):
        return None
    try:
        mean, deviation = fn.mean, fn.stddev
    except (NotImplementedError, AttributeError):
        return None
    mean = torch.where(mean.isfinite(), mean, transform(torch.zeros_like(mean)))
    keeps = torch.is_grad_enabled()
    with torch.enable_grad():
        at = mean.view_as(mean) if mean.requires_grad else mean.detach().requires_grad_()
        (slope,) = torch.autograd.grad(transform.inv(at).sum(), at, create_graph=keeps)
    scale = deviation * slope.abs()
    return torch.where(scale.isfinite() & (scale > 0), scale, 1.0)


def _is_elementwise(transform: Transform) -> bool:
    if isinstance(transform, IndependentTransform):
        return _is_elementwise(transform.base_transform)
    return transform.domain.event_dim == transform.codomain.event_dim == 0

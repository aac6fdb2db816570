# SPDX-License-Identifier: MIT
"""A guide whose latents have been moved towards the posterior by a tempered Hamiltonian flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jaxtyping import Float
from numpyro.distributions import Delta, Distribution
from numpyro.distributions.util import sum_rightmost
from numpyro.primitives import Messenger

from numpyro_backend._traces.flow import LogJoint, finite_rows, isolated, where_rows
from numpyro_backend._traces.initial_draw import InitialDraw, InitialSite
from numpyro_backend._traces.recording import Message, reweight
from numpyro_backend.integrators import PotentialGrad, tempered_leapfrog
from pyro_infovae._core.integrators import LARGEST_MOMENTUM, check_flow, resting, step_size_of
from pyro_infovae._core.objectives import Prefactors
from pyro_infovae._core.programs import Program


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step_size", "inverse_temperatures"],
    meta_fields=["per_step"],
)
@dataclass(frozen=True)
class FlowSettings:
    """The numbers that a flow runs with.

    Attributes:
        step_size: one for all sites, or one per site.
        per_step: whether step sizes have a leading axis, one entry per step.
        inverse_temperatures: (num_steps + 1,).
    """

    step_size: Array | dict[str, Array]
    per_step: bool
    inverse_temperatures: Float[Array, " num_steps+1"]


@dataclass(frozen=True)
class RefinedGuide:
    r"""A guide after its Hamiltonian flow: a guide itself, whose latents are :math:`T(u_K)`.

    The log density of a latent is

    .. math::
        \log q(u_0) + \log N(\rho_0; 0, I / \beta_0) - \tfrac{d}{2} \log(\beta_0 / \beta_K)
        - \log N(\rho_K; 0, I) - \log |\det J_T(u_K)|

    so that ``log p(x, z) - log q(z)`` of a draw is a log importance weight, whose exponential
    averages to the evidence p(x). A row whose flow diverged stays where the guide drew it, with a
    log density of infinity, so that its weight is 0; in training with the guide's own log density,
    so that it counts by that draw. So does a draw on the edge of its support, which has no
    :math:`u_0`.

    Attributes:
        model: the user's model.
        guide: the user's guide.
        settings: gives the numbers to run with.
        sites: the latents that flow, or None for all.
        prefactors: factors on the terms above.
        in_training: whether a loss is made of it.
        checkpoint: whether backward computes each gradient again instead of keeping what it
            computed.
    """

    model: Program
    guide: Program
    settings: Callable[[], FlowSettings]
    sites: frozenset[str] | None = None
    prefactors: Prefactors = field(default_factory=Prefactors)
    in_training: bool = False
    checkpoint: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Run the guide, move its latents, and draw them where they end.

        Returns:
            The latents that flowed, by site name.
        """
        settings = self.settings()
        initial = InitialDraw(self.sites)
        with SiteWeights(latent=self.prefactors.logq[0]), initial:
            self.guide(*args, **kwargs)
        initial.check()
        values = {name: site.value for name, site in initial.flowing.items()}
        given = {**initial.given, **initial.minibatches}
        log_joint = LogJoint(
            isolated(self.model, args, kwargs, {**given, **values}),
            given,
            plates={name: site.plates for name, site in initial.flowing.items()},
        )
        start = log_joint.unconstrain(values)
        initial.check_densities({n: u.shape for n, u in start.unconstrained.items()})
        rho_0 = _start_momentum(start.unconstrained, settings.inverse_temperatures)
        batch_dims = {
            name: min(site.batch_dim, start.log_jacobian[name].ndim)
            for name, site in initial.flowing.items()
        }
        inside = {name: _all(start.inside[name], dim) for name, dim in batch_dims.items()}
        gradient = log_joint.potential_grad
        if self.checkpoint:
            gradient = jax.checkpoint(gradient)
        moving = inside
        if self.in_training:
            still = jax.lax.stop_gradient((start.unconstrained, rho_0, settings))
            finite = _End.of(*still, gradient, inside).finite
            moving = {name: inside[name] & rows for name, rows in finite.items()}
        flowed = _End.of(start.unconstrained, rho_0, settings, gradient, moving)
        ended = {name: moving[name] & finite for name, finite in flowed.finite.items()}
        end = log_joint.constrain(
            {
                name: where_rows(ended[name], u, start.unconstrained[name])
                for name, u in flowed.position.items()
            }
        )
        rested = _rested(rho_0, settings.inverse_temperatures)
        latents = {}
        for name, site in initial.flowing.items():
            density = self._log_density(
                site,
                start.log_jacobian[name],
                rho_0[name],
                where_rows(ended[name], flowed.momentum[name], rested[name]),
                end.log_jacobian[name],
                settings.inverse_temperatures,
                batch_dims[name],
            )
            if not self.in_training:
                density = jnp.where(ended[name] | ~inside[name], density, math.inf)
            guide_density = self.prefactors.logq[0] * _per_row(site.log_prob, batch_dims[name])
            density = jnp.where(inside[name], density, guide_density)
            value = where_rows(inside[name], end.constrained[name], site.value)
            with InPlaceOf(site):
                latents[name] = numpyro.sample(name, point_mass(value, density, site.mask))
        return latents

    def _log_density(
        self,
        site: InitialSite,
        start_log_jacobian: Array,
        rho_0: Array,
        rho_end: Array,
        end_log_jacobian: Array,
        inverse_temperatures: Array,
        batch_dim: int,
    ) -> Float[Array, "*batch"]:
        """The log density of a flowed latent, one term a line."""
        guide, momentum, tempering = self.prefactors.logq
        beta_0, beta_end = (inverse_temperatures[k].astype(rho_0.dtype) for k in (0, -1))
        num_features = math.prod(rho_0.shape[batch_dim:])
        return (
            guide * _per_row(site.log_prob, batch_dim)
            + guide * _per_row(start_log_jacobian, batch_dim)
            + momentum * _log_normal(rho_0, beta_0, batch_dim)
            - tempering * (num_features / 2) * jnp.log(beta_0 / beta_end)
            - self.prefactors.logp[2] * _log_normal(rho_end, jnp.ones_like(beta_0), batch_dim)
            - self.prefactors.logp[1] * _per_row(end_log_jacobian, batch_dim)
        )


@dataclass(frozen=True)
class _End:
    """Where a flow ends.

    Attributes:
        position: u_K by site name.
        momentum: its momentum.
        finite: the rows in which both are finite, and the momentum is below the largest.
    """

    position: dict[str, Array]
    momentum: dict[str, Array]
    finite: dict[str, Array]

    @classmethod
    def of(
        cls,
        u_0: dict[str, Array],
        rho_0: dict[str, Array],
        settings: FlowSettings,
        potential_grad: PotentialGrad,
        moving: dict[str, Array],
    ) -> _End:
        """The flow of the rows that are to move, from the given start."""
        sizes, per_step = settings.step_size, settings.per_step
        check_flow(u_0, rho_0, settings.inverse_temperatures, sizes, per_step=per_step)
        position, momentum, _ = tempered_leapfrog(
            u_0,
            rho_0,
            potential_grad,
            settings.inverse_temperatures,
            step_size={
                name: resting(step_size_of(sizes, name), rows, u_0[name].shape, per_step=per_step)
                for name, rows in moving.items()
            },
            per_step=per_step,
        )
        finite = {
            name: finite_rows(position[name], rows.ndim)
            & finite_rows(momentum[name], rows.ndim, below=LARGEST_MOMENTUM)
            for name, rows in moving.items()
        }
        return cls(position, momentum, finite)


class SiteWeights(Messenger):
    """Multiplies the log densities of all observed sites and of all latents.

    Args:
        fn: the program to weight.
        observed: the factor on observed sites.
        latent: the factor on latents.
    """

    def __init__(
        self, fn: Program | None = None, *, observed: float = 1.0, latent: float = 1.0
    ) -> None:
        super().__init__(fn)
        self.observed = observed
        self.latent = latent

    def process_message(self, msg: Message) -> None:
        """Weight a site."""
        if msg["type"] == "sample":
            reweight(msg, self.observed if msg["is_observed"] else self.latent)


class InPlaceOf(Messenger):
    """Draws a latent in the plates and scale that the guide drew it in."""

    def __init__(self, site: InitialSite) -> None:
        super().__init__()
        self.site = site

    def process_message(self, msg: Message) -> None:
        msg["cond_indep_stack"] = list(self.site.frames)
        msg["scale"] = self.site.scale

    def postprocess_message(self, msg: Message) -> None:
        for frame in msg["cond_indep_stack"][len(self.site.frames) :]:
            raise NotImplementedError(
                f"The refined guide runs in plate '{frame.name}', whose rows would share one draw: "
                "use jax.vmap over keys, or Predictive"
            )


def point_mass(value: Array, log_density: Array, mask: Array | None) -> Distribution:
    # Unvalidated, for the log density of a row that diverged is nan.
    delta = Delta(value, log_density, value.ndim - log_density.ndim, validate_args=False)
    return delta if mask is None else delta.mask(mask)


def _start_momentum(u: dict[str, Array], inverse_temperatures: Array) -> dict[str, Array]:
    factor = jax.lax.rsqrt(inverse_temperatures[0])
    return {
        name: jax.random.normal(numpyro.prng_key(), position.shape, position.dtype)
        * factor.astype(position.dtype)
        for name, position in u.items()
    }


def _rested(rho_0: dict[str, Array], inverse_temperatures: Array) -> dict[str, Array]:
    """The momentum after a flow without a force."""
    factor = jnp.sqrt(inverse_temperatures[0] / inverse_temperatures[-1])
    return {name: factor.astype(rho.dtype) * rho for name, rho in rho_0.items()}


def _all(rows: Array, batch_dim: int) -> Array:
    return rows.all(tuple(range(batch_dim, rows.ndim)))


def _log_normal(rho: Array, beta: Array, batch_dim: int) -> Array:
    return _per_row(0.5 * jnp.log(beta / (2 * math.pi)) - 0.5 * beta * rho**2, batch_dim)


def _per_row(terms: Array, batch_dim: int) -> Array:
    return sum_rightmost(terms, terms.ndim - batch_dim)

# SPDX-License-Identifier: MIT
"""A guide whose latents have been moved towards the posterior by a tempered Hamiltonian flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jaxtyping import Bool, Float
from numpyro.distributions import Delta, Distribution
from numpyro.distributions.util import sum_rightmost
from numpyro.primitives import Messenger

from numpyro_backend._traces.flow import LogJoint, isolated
from numpyro_backend._traces.initial_draw import InitialDraw, InitialSite
from numpyro_backend._traces.recording import Message, reweight
from numpyro_backend.integrators import tempered_leapfrog
from pyro_infovae._core.objectives import Prefactors
from pyro_infovae._core.programs import Program


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
    log density of nan.

    Attributes:
        model: the user's model.
        guide: the user's guide.
        settings: gives the numbers to run with.
        sites: the latents that flow, or None for all.
        prefactors: factors on the terms above.
    """

    model: Program
    guide: Program
    settings: Callable[[], FlowSettings]
    sites: frozenset[str] | None = None
    prefactors: Prefactors = field(default_factory=Prefactors)

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
        beta_0 = settings.inverse_temperatures[0]
        rho_0 = {
            name: _standard_normal(u) * jax.lax.rsqrt(beta_0).astype(u.dtype)
            for name, u in start.unconstrained.items()
        }
        u_end, rho_end, _ = tempered_leapfrog(
            start.unconstrained,
            rho_0,
            log_joint.potential_grad,
            settings.inverse_temperatures,
            step_size=settings.step_size,
            per_step=settings.per_step,
        )
        batch_dims = {
            name: min(site.batch_dim, start.log_jacobian[name].ndim)
            for name, site in initial.flowing.items()
        }
        finite = {
            name: _is_finite(u_end[name], batch_dim) & _is_finite(rho_end[name], batch_dim)
            for name, batch_dim in batch_dims.items()
        }
        end = log_joint.constrain(
            {
                name: _where_rows(finite[name], u, start.unconstrained[name])
                for name, u in u_end.items()
            }
        )
        for name, site in initial.flowing.items():
            density = self._log_density(
                site,
                start.log_jacobian[name],
                rho_0[name],
                rho_end[name],
                end.log_jacobian[name],
                settings.inverse_temperatures,
                batch_dims[name],
            )
            density = jnp.where(finite[name], density, math.nan)
            with _InPlaceOf(site):
                numpyro.sample(name, _delta(end.constrained[name], density, site.mask))
        return end.constrained

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


class _InPlaceOf(Messenger):
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


def _delta(value: Array, log_density: Array, mask: Array | None) -> Distribution:
    # Unvalidated, for the log density of a row that diverged is nan.
    delta = Delta(value, log_density, value.ndim - log_density.ndim, validate_args=False)
    return delta if mask is None else delta.mask(mask)


def _standard_normal(like: Array) -> Array:
    return jax.random.normal(numpyro.prng_key(), like.shape, like.dtype)


def _log_normal(rho: Array, beta: Array, batch_dim: int) -> Array:
    return _per_row(0.5 * jnp.log(beta / (2 * math.pi)) - 0.5 * beta * rho**2, batch_dim)


def _per_row(terms: Array, batch_dim: int) -> Array:
    return sum_rightmost(terms, terms.ndim - batch_dim)


def _is_finite(array: Array, batch_dim: int) -> Bool[Array, "*batch"]:
    return jnp.isfinite(array).all(tuple(range(batch_dim, array.ndim)))


def _where_rows(rows: Array, array: Array, other: Array) -> Array:
    return jnp.where(rows.reshape(rows.shape + (1,) * (array.ndim - rows.ndim)), array, other)

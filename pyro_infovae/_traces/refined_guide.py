# SPDX-License-Identifier: MIT
"""A guide whose latents have been moved towards the posterior by a tempered Hamiltonian flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Delta
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_infovae._core.objectives import Prefactors
from pyro_infovae._core.programs import Program
from pyro_infovae._traces.flow import LogJoint
from pyro_infovae._traces.initial_draw import InitialDraw, InitialSite
from pyro_infovae._traces.recording import FLOWED, is_latent, reweight
from pyro_infovae.integrators import tempered_leapfrog


@dataclass(frozen=True)
class FlowSettings:
    """The numbers that a flow runs with.

    Attributes:
        step_size: one for all sites, or one per site.
        per_step: whether step sizes have a leading axis, one entry per step.
        inverse_temperatures: (num_steps + 1,).
    """

    step_size: Tensor | dict[str, Tensor]
    per_step: bool
    inverse_temperatures: Float[Tensor, " num_steps+1"]

    def step_sizes(self, positions: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step sizes per site, of its dtype and device."""
        if isinstance(self.step_size, Tensor):
            return {name: self.step_size.to(u) for name, u in positions.items()}
        if self.step_size.keys() != positions.keys():
            raise ValueError(
                f"Expected step_size of the sites {sorted(positions)}; got {sorted(self.step_size)}"
            )
        return {name: self.step_size[name].to(u) for name, u in positions.items()}


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

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the guide, move its latents, and draw them where they end.

        Returns:
            The latents that flowed, by site name.
        """
        settings = self.settings()
        initial = InitialDraw(self.sites)
        with SiteWeights(latent=self.prefactors.logq[0]), initial:
            self.guide(*args, **kwargs)
        initial.check()
        log_joint = LogJoint(
            self.model,
            args,
            kwargs,
            given=initial.given,
            plates={name: site.plates for name, site in initial.flowing.items()},
            outer=initial.outer,
            dtypes={name: site.value.dtype for name, site in initial.flowing.items()},
        )
        start = log_joint.unconstrain({name: site.value for name, site in initial.flowing.items()})
        beta_0 = settings.inverse_temperatures[0]
        rho_0 = {
            name: torch.randn_like(u) * beta_0.to(u).rsqrt()
            for name, u in start.unconstrained.items()
        }
        u_end, rho_end, _ = tempered_leapfrog(
            start.unconstrained,
            rho_0,
            log_joint.potential_grad,
            # A 0-dim latent would take on the dtype of a 0-dim factor.
            settings.inverse_temperatures.to(next(iter(rho_0.values()))),
            step_size=settings.step_sizes(start.unconstrained),
            per_step=settings.per_step,
        )
        # Guide and model may differ in event dims: the rows are those that both tell apart.
        batch_dims = {
            name: min(site.batch_dim, start.log_jacobian[name].dim())
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
            density = torch.where(finite[name], density, math.nan)
            with _InPlaceOf(site):
                pyro.sample(name, _delta(end.constrained[name], density))
        return end.constrained

    def _log_density(
        self,
        site: InitialSite,
        start_log_jacobian: Tensor,
        rho_0: Tensor,
        rho_end: Tensor,
        end_log_jacobian: Tensor,
        inverse_temperatures: Tensor,
        batch_dim: int,
    ) -> Float[Tensor, ...]:
        """The log density of a flowed latent, one term a line."""
        guide, momentum, tempering = self.prefactors.logq
        beta_0, beta_end = (inverse_temperatures[k].to(rho_0) for k in (0, -1))
        num_features = math.prod(rho_0.shape[batch_dim:])
        return (
            guide * _per_row(site.log_prob, batch_dim)
            + guide * _per_row(start_log_jacobian, batch_dim)
            + momentum * _log_normal(rho_0, beta_0, batch_dim)
            - tempering * (num_features / 2) * (beta_0 / beta_end).log()
            - self.prefactors.logp[2] * _log_normal(rho_end, torch.ones_like(beta_0), batch_dim)
            - self.prefactors.logp[1] * _per_row(end_log_jacobian, batch_dim)
        )


class SiteWeights(Messenger):
    """Multiplies the log densities of all observed sites and of all latents.

    Args:
        observed: the factor on observed sites.
        latent: the factor on latents.
    """

    def __init__(self, *, observed: float = 1.0, latent: float = 1.0) -> None:
        super().__init__()
        self.observed = observed
        self.latent = latent

    def _pyro_sample(self, msg: Message) -> None:
        if msg["is_observed"]:
            reweight(msg, self.observed)
        elif is_latent(msg):
            reweight(msg, self.latent)


class _InPlaceOf(Messenger):
    """Draws a latent in the plates, mask and scale that the guide drew it in."""

    def __init__(self, site: InitialSite) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Message) -> None:
        msg["cond_indep_stack"] = self.site.plates
        msg["scale"] = self.site.scale
        msg["mask"] = self.site.mask
        msg["infer"] = {FLOWED: True}


def _delta(value: Tensor, log_density: Tensor) -> Delta:
    # Unvalidated, for the log density of a row that diverged is nan.
    return Delta(value, log_density, value.dim() - log_density.dim(), validate_args=False)


def _log_normal(rho: Tensor, beta: Tensor, batch_dim: int) -> Tensor:
    return _per_row(0.5 * (beta / (2 * math.pi)).log() - 0.5 * beta * rho**2, batch_dim)


def _per_row(terms: Tensor, batch_dim: int) -> Tensor:
    return sum_rightmost(terms, terms.dim() - batch_dim)


def _is_finite(tensor: Tensor, batch_dim: int) -> Tensor:
    return (
        tensor.isfinite().flatten(batch_dim).all(-1)
        if tensor.dim() > batch_dim
        else tensor.isfinite()
    )


def _where_rows(rows: Tensor, tensor: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.view(rows.shape + (1,) * (tensor.dim() - rows.dim())), tensor, other)

# SPDX-License-Identifier: MIT
"""A guide whose latents have been moved towards the posterior by a tempered Hamiltonian flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Delta
from pyro.distributions.util import sum_rightmost
from pyro.infer.mcmc.util import _guess_max_plate_nesting
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_infovae._arrays.checkpointing import graphs_kept, trial, tries_first
from pyro_infovae._core.integrators import LARGEST_MOMENTUM, check_flow, resting
from pyro_infovae._core.objectives import Prefactors
from pyro_infovae._core.programs import Program
from pyro_infovae._traces.flow import LogJoint, finite_rows, where_rows
from pyro_infovae._traces.initial_draw import InitialDraw, InitialSite
from pyro_infovae._traces.recording import FLOWED, check_guide, is_latent, reweight
from pyro_infovae._traces.runs import buffers_untouched
from pyro_infovae.integrators import PotentialGrad, tempered_leapfrog


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
        max_plate_nesting: the depth of all plates, or infinity, to be found out by a run.
        checkpoint: whether backward computes each gradient again instead of keeping its graph.
    """

    model: Program
    guide: Program
    settings: Callable[[], FlowSettings]
    sites: frozenset[str] | None = None
    prefactors: Prefactors = field(default_factory=Prefactors)
    in_training: bool = False
    max_plate_nesting: float = math.inf
    checkpoint: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the guide, move its latents, and draw them where they end.

        Returns:
            The latents that flowed, by site name.
        """
        check_guide(self.guide)
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
            max_plate_nesting=nesting_of(self.model, self.max_plate_nesting, initial, args, kwargs),
            dtypes={name: site.value.dtype for name, site in initial.flowing.items()},
        )
        start = log_joint.unconstrain({name: site.value for name, site in initial.flowing.items()})
        u_0 = start.unconstrained
        initial.check_densities(u_0)
        rho_0 = _start_momentum(u_0, settings.inverse_temperatures)
        # Guide and model may differ in event dims: the rows are those that both tell apart.
        batch_dims = {
            name: min(site.batch_dim, start.log_jacobian[name].dim())
            for name, site in initial.flowing.items()
        }
        inside = {name: all_of(start.inside[name], dim) for name, dim in batch_dims.items()}
        moving, potential_grad = inside, log_joint.potential_grad
        if self.in_training and tries_first():
            with trial(*rho_0.values()):
                finite = _End.of(u_0, rho_0, settings, potential_grad, inside).finite
            moving = {name: inside[name] & rows for name, rows in finite.items()}
        with nullcontext() if self.checkpoint else graphs_kept():
            flowed = _End.of(u_0, rho_0, settings, potential_grad, moving)
        ended = {name: moving[name] & finite for name, finite in flowed.finite.items()}
        end = log_joint.constrain(
            {name: where_rows(ended[name], u, u_0[name]) for name, u in flowed.position.items()}
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
                density = torch.where(ended[name] | ~inside[name], density, math.inf)
            guide_density = self.prefactors.logq[0] * _per_row(site.log_prob, batch_dims[name])
            density = torch.where(inside[name], density, guide_density)
            value = where_rows(inside[name], end.constrained[name], site.value)
            found = {
                "start": inside[name],
                "force": flowed.finite[name],
                "path": ended[name] | ~inside[name],
            }
            with InPlaceOf(site, found):
                latents[name] = pyro.sample(name, point_mass(value, density))
        return latents

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


@dataclass(frozen=True)
class _End:
    """Where a flow ends.

    Attributes:
        position: u_K by site name.
        momentum: its momentum.
        finite: the rows in which both are finite, and the momentum is below the largest.
    """

    position: dict[str, Tensor]
    momentum: dict[str, Tensor]
    finite: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        u_0: dict[str, Tensor],
        rho_0: dict[str, Tensor],
        settings: FlowSettings,
        potential_grad: PotentialGrad,
        moving: dict[str, Tensor],
    ) -> _End:
        """The flow of the rows that are to move, from the given start."""
        sizes = settings.step_sizes(u_0)
        betas, per_step = settings.inverse_temperatures, settings.per_step
        check_flow(u_0, rho_0, betas, sizes, per_step=per_step)
        position, momentum, _ = tempered_leapfrog(
            u_0,
            rho_0,
            potential_grad,
            # A 0-dim latent would take on the dtype of a 0-dim factor.
            betas.to(next(iter(rho_0.values()))),
            step_size={
                name: resting(sizes[name], rows, u_0[name].shape, per_step=per_step)
                for name, rows in moving.items()
            },
            per_step=per_step,
        )
        finite = {
            name: finite_rows(position[name], rows.dim())
            & finite_rows(momentum[name], rows.dim(), below=LARGEST_MOMENTUM)
            for name, rows in moving.items()
        }
        return cls(position, momentum, finite)


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


class InPlaceOf(Messenger):
    """Draws a latent in the plates, mask and scale that the guide drew it in."""

    def __init__(self, site: InitialSite, finite: dict[str, Tensor]) -> None:
        super().__init__()
        self.site = site
        self.finite = finite

    def _pyro_sample(self, msg: Message) -> None:
        msg["cond_indep_stack"] = self.site.plates
        msg["scale"] = self.site.scale
        msg["mask"] = self.site.mask
        msg["infer"] = {**self.site.infer, FLOWED: self.finite}


def nesting_of(
    model: Program,
    known: float,
    initial: InitialDraw,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> int:
    """The depth of all plates: as known, or found out by a run of the model."""
    if known == math.inf:
        with trial(*initial.given.values()), buffers_untouched():
            known = _guess_max_plate_nesting(model, args, kwargs)
    return max([int(known), *(-frame.dim for frame in initial.outer)])


def point_mass(value: Tensor, log_density: Tensor) -> Delta:
    """A draw that stands with the log density of each of its rows."""
    # Unvalidated, for the log density of a row that diverged is nan.
    return Delta(value, log_density, value.dim() - log_density.dim(), validate_args=False)


def _log_normal(rho: Tensor, beta: Tensor, batch_dim: int) -> Tensor:
    return _per_row(0.5 * (beta / (2 * math.pi)).log() - 0.5 * beta * rho**2, batch_dim)


def _per_row(terms: Tensor, batch_dim: int) -> Tensor:
    return sum_rightmost(terms, terms.dim() - batch_dim)


def _start_momentum(u: dict[str, Tensor], inverse_temperatures: Tensor) -> dict[str, Tensor]:
    return {
        name: torch.randn_like(position) * inverse_temperatures[0].to(position).rsqrt()
        for name, position in u.items()
    }


def _rested(rho_0: dict[str, Tensor], inverse_temperatures: Tensor) -> dict[str, Tensor]:
    """The momentum after a flow without a force."""
    factor = (inverse_temperatures[0] / inverse_temperatures[-1]).sqrt()
    return {name: factor.to(rho) * rho for name, rho in rho_0.items()}


def all_of(rows: Tensor, batch_dim: int) -> Tensor:
    """Which rows, of so many dims, are true in all dims to the right of these."""
    return rows.flatten(batch_dim).all(-1) if rows.dim() > batch_dim else rows

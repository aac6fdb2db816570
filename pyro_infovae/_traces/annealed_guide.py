# SPDX-License-Identifier: MIT
"""A guide whose draws have been moved along the bridge from its own density to the posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pyro
import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor

from pyro_infovae._arrays.checkpointing import (
    checkpointed_gradient,
    differentiable,
    if_it_stands,
    keeps_graphs,
    trial,
    tries_first,
)
from pyro_infovae._core.flow_options import AnnealedOptions
from pyro_infovae._core.integrators import LARGEST_MOMENTUM, resting
from pyro_infovae._core.programs import Program
from pyro_infovae._traces.flow import (
    LastRun,
    LogJoint,
    Values,
    finite_rows,
    subsample_factor,
    where_rows,
)
from pyro_infovae._traces.guide_map import GuideMap, Moved
from pyro_infovae._traces.initial_draw import InitialDraw
from pyro_infovae._traces.recording import check_guide, full_size
from pyro_infovae._traces.refined_guide import InPlaceOf, nesting_of, point_mass
from pyro_infovae.integrators import annealed_leapfrog


@dataclass(frozen=True)
class AnnealedSettings:
    """The numbers that a flow runs with.

    Attributes:
        step_size: per site that moves, below a leading axis of steps.
        inverse_temperatures: (num_steps,).
        persistence: (num_steps - 1,).
        surrogate_weights: of the rows that stand for all data, in units of N over their number.
    """

    step_size: dict[str, Tensor]
    inverse_temperatures: Float[Tensor, " num_steps"]
    persistence: Float[Tensor, " num_steps-1"]
    surrogate_weights: Float[Tensor, " num_points"] | None


class Settings(Protocol):
    """Gives the numbers to run with."""

    options: AnnealedOptions

    def __call__(
        self, positions: Mapping[str, Tensor], event_dims: Mapping[str, int]
    ) -> AnnealedSettings:
        """Those for sites that start at these positions."""

    def adapt(self, gain: Tensor, numbers: float) -> None:
        """Learn what the flow has gained, in nats per row of so many numbers."""


@dataclass(frozen=True)
class AnnealedGuide:
    r"""A guide after its annealed flow: a guide itself, whose latents are :math:`z(u_K)`.

    The log density of a site that moved is

    .. math::
        \log q(u_0) - \sum_k [\log N(\hat\rho_k; 0, I) - \log N(\rho_{k-1}; 0, I)]
        - \log |\det J_T(u_K)|

    so that ``log p(x, z) - log q(z)`` of a draw is a log importance weight, whose exponential
    averages to the evidence p(x): it is the ratio of two densities on the extended space of
    positions, momenta and their refreshments. A row whose flow diverged stays where the guide drew
    it, with a log density of infinity, so that its weight is 0; in training with the guide's own
    log density, so that it counts by that draw. So does a draw on the edge of its support.

    Attributes:
        model: the user's model.
        guide: the user's guide.
        settings: gives the numbers to run with.
        sites: the latents that flow, or None for all.
        in_training: whether a loss is made of it.
        max_plate_nesting: the depth of all plates, or infinity, to be found out by a run.
        last: takes the model's run where the flow ends, for a loss whose rows all end there.
        checkpoint: whether backward computes each gradient again instead of keeping its graph.
    """

    model: Program
    guide: Program
    settings: Settings
    sites: frozenset[str] | None = None
    in_training: bool = False
    max_plate_nesting: float = math.inf
    last: LastRun | None = None
    checkpoint: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the guide, move its draws, and draw them where they end.

        Returns:
            The latents that flowed, by site name.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                args, kwargs = differentiable((args, kwargs))
                return self(*args, **kwargs)
        check_guide(self.guide)
        initial = InitialDraw(self.sites, moves_auxiliary=True)
        with initial:
            self.guide(*args, **kwargs)
        initial.check()
        options = self.settings.options
        guide_map = GuideMap(self.guide, args, kwargs, initial, options.precondition)
        log_joint = LogJoint(
            self.model,
            args,
            kwargs,
            given=initial.given,
            plates={name: site.plates for name, site in initial.flowing.items()},
            outer=initial.outer,
            max_plate_nesting=nesting_of(self.model, self.max_plate_nesting, initial, args, kwargs),
        )
        guide_map.check()
        values = {name: site.value for name, site in initial.flowing.items()}
        if initial.lacks_density(values):
            initial.check_densities(log_joint.unconstrain(values).unconstrained)
        u_0, inside = guide_map.start
        settings = self.settings(u_0, guide_map.event_dims)
        if options.surrogate is not None:
            log_joint = log_joint.on_rows(options.surrogate, values, settings.surrogate_weights)
        momentum = draw_momenta(u_0)
        noise = draw_refreshments(u_0, options)
        bridge = Bridge(guide_map, log_joint, settings, momentum, noise, self.checkpoint)
        moving = inside
        if self.in_training and tries_first():
            with trial(*u_0.values()):
                finite = bridge.end(inside).finite
            moving = {name: inside[name] & rows for name, rows in finite.items()}
        end = bridge.end(moving, self.last if guide_map.is_everywhere else None)
        ended = {name: moving[name] & rows for name, rows in end.finite.items()}
        if self.in_training and options.learn and torch.is_grad_enabled():
            lost = {name: inside[name] & ~rows for name, rows in ended.items()}
            if_it_stands(partial(self.settings.adapt, bridge.gain(end, lost), bridge.row_size))
        moved = guide_map.end(
            {name: where_rows(ended[name], u, u_0[name]) for name, u in end.position.items()}
        )
        latents = {}
        for name, site in guide_map.sites.items():
            density = self._log_density(guide_map, moved, end, name, inside[name], ended[name])
            found = {
                "start": inside[name],
                "force": end.sound[name],
                "path": ended[name] | ~inside[name],
            }
            with InPlaceOf(site, found):
                latents[name] = pyro.sample(name, point_mass(moved.values[name], density))
        for name, site in {**initial.auxiliary, **guide_map.masses}.items():
            if name not in latents:
                value = moved.values.get(name, site.value)
                density = moved.density.get(name, site.log_prob)
                with InPlaceOf(site, {}):
                    latents[name] = pyro.sample(name, point_mass(value, density))
        return {name: latents[name] for name in initial.flowing}

    def _log_density(
        self,
        guide_map: GuideMap,
        moved: Moved,
        end: End,
        name: str,
        inside: Tensor,
        ended: Tensor,
    ) -> Float[Tensor, ...]:
        """The log density of each row of a site that moved."""
        site, chart = guide_map.sites[name], guide_map.coordinates[name]
        u_0 = guide_map.start[0][name]
        volume = chart.log_jacobian(u_0, chart.transform(u_0)) - moved.log_jacobian[name]
        ratio = sum_rightmost(end.log_ratio[name], u_0.dim() - site.batch_dim)
        density = site.log_prob + torch.where(inside, volume, 0.0) - torch.where(ended, ratio, 0.0)
        if self.in_training:
            return density
        return torch.where(ended | ~inside, density, math.inf)


@dataclass(frozen=True)
class End:
    """Where a flow ends.

    Attributes:
        position: u_K by site name.
        log_ratio: the log densities of the momenta after the steps, less those before, by site
            name and number.
        log_joints: ℓ at the start and at the end.
        finite: the rows in which position and momentum are finite.
        sound: the rows in which the force at the start is finite.
    """

    position: Values
    log_ratio: Values
    log_joints: tuple[Tensor, Tensor]
    finite: Values
    sound: Values


@dataclass(frozen=True)
class Bridge:
    """The flow from a guide's draw along the bridge from its density to the posterior.

    Attributes:
        guide_map: the guide's latents at the positions of its sites.
        log_joint: the model's log density.
        settings: the numbers to run with.
        momentum: where the momenta start, by site name.
        noise: what refreshes them, by site name.
        checkpoint: whether backward computes each gradient again instead of keeping its graph.
    """

    guide_map: GuideMap
    log_joint: LogJoint
    settings: AnnealedSettings
    momentum: Values
    noise: Values
    checkpoint: bool

    def end(self, moving: Values, last: LastRun | None = None) -> End:
        """Where the rows end that are to move.

        Args:
            moving: which rows, by site name.
            last: takes the run of the model there.
        """
        u_0, _ = self.guide_map.start
        sound: Values = {}
        runs = iter([*(None for _ in self.settings.inverse_temperatures), last])
        position, momentum, log_ratio, log_joints = annealed_leapfrog(
            u_0,
            self.momentum,
            lambda positions: self._forces(positions, moving, sound, next(runs)),
            self.settings.inverse_temperatures,
            self.settings.persistence,
            self.noise,
            step_size={
                name: resting(size, moving[name], u_0[name].shape, per_step=True)
                for name, size in self.settings.step_size.items()
            },
            event_dims=self.guide_map.event_dims,
        )
        finite = {
            name: finite_rows(position[name], rows.dim())
            & finite_rows(momentum[name], rows.dim(), below=LARGEST_MOMENTUM)
            for name, rows in moving.items()
        }
        return End(position, log_ratio, log_joints, finite, sound)

    def _towards_zero(self, name: str, u: Tensor) -> Tensor:
        """The gradient of the log density of noise, 0 in masked rows."""
        site = self.guide_map.sites[name]
        if site.mask is None or site.mask is True:
            return -u
        mask = torch.as_tensor(site.mask, device=u.device)
        features = (1,) * (u.dim() - site.batch_dim)
        return torch.where(mask.reshape(mask.shape + features), -u, 0.0)

    def _forces(
        self, positions: Values, moving: Values, sound: Values, last: LastRun | None
    ) -> tuple[Values, Values, Tensor]:
        """The gradients, 0 in rows that are not to move; notes at first where they are finite."""
        target, start, value = self.gradients(positions, last)
        if not sound:
            sound.update({name: finite_rows(target[name], r.dim()) for name, r in moving.items()})
        for gradients in (target, start):
            for name, rows in moving.items():
                still = torch.zeros_like(gradients[name])
                gradients[name] = where_rows(rows, gradients[name], still)
        return target, start, value

    def gain(self, end: End, lost: Values) -> Float[Tensor, ""]:
        """By how much log w is above that of the unmoved draw, in nats per row.

        It is infinitely below where a row diverged whose first force was finite.

        Args:
            end: where the flow ended.
            lost: which rows diverged, by site name.
        """
        first, last = (value.detach() for value in end.log_joints)
        total = last - first
        diverged = torch.zeros_like(first, dtype=torch.bool)
        for name, site in self.guide_map.sites.items():
            terms = end.log_ratio[name].detach()
            rows = sum_rightmost(terms, terms.dim() - site.batch_dim)
            total = total + scale_and_mask(rows, subsample_factor(site.plates), site.mask).sum()
            diverged = diverged | (end.sound[name] & lost[name]).any()
        gain = torch.where(total.isfinite(), total, 0.0) / self._num_rows
        return torch.where(diverged, -math.inf, gain)

    @property
    def row_size(self) -> float:
        """How many numbers of a row flow."""
        sites, rho = self.guide_map.sites, self.momentum
        sizes = [rho[name].numel() * subsample_factor(site.plates) for name, site in sites.items()]
        return sum(sizes) / self._num_rows

    @property
    def _num_rows(self) -> int:
        """How many rows there are in the data set."""
        plates = [(*s.plates, *self.log_joint.outer) for s in self.guide_map.sites.values()]
        return max((math.prod(full_size(f) for f in frames) for frames in plates), default=1)

    def gradients(
        self, positions: Values, last: LastRun | None = None
    ) -> tuple[Values, Values, Tensor]:
        """The gradients of ℓ and of log q, each datum's own, and ℓ.

        Args:
            positions: where to take them, by site name.
            last: takes the run of the model.
        """
        names, others = list(self.log_joint.plates), list(self.log_joint.given)

        def density(*tensors: Tensor) -> Tensor:
            values = dict(zip(names, tensors, strict=False))
            given = dict(zip(others, tensors[len(names) :], strict=True))
            return self.log_joint.density(values, given, last)

        keeps = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            u = {
                name: x.view_as(x) if x.requires_grad else x.clone().requires_grad_()
                for name, x in positions.items()
            }
            moved = self.guide_map(u)
            latents = [moved.values[name] for name in names]
            given = tuple(self.log_joint.given.values())
            volume = self.guide_map.volume(moved)
            if self.checkpoint and not keeps_graphs():
                slopes, value = checkpointed_gradient(density, latents, given)
                outputs, weights = [*latents, volume], [*slopes, torch.ones_like(volume)]
                target = _gradient(outputs, u, weights, keeps=keeps)
                value = value + volume
            else:
                value = density(*latents, *given) + volume
                target = _gradient([value], u, [torch.ones_like(value)], keeps=keeps)
            if all(chart.is_noise for chart in moved.coordinates.values()):
                start = {name: self._towards_zero(name, x) for name, x in u.items()}
            else:
                log_q = self.guide_map.log_density(u, moved)
                start = _gradient([log_q], u, [torch.ones_like(log_q)], keeps=keeps)
        if not keeps:
            start = {name: gradient.detach() for name, gradient in start.items()}
            value = value.detach()
        factors = {n: subsample_factor(site.plates) for n, site in self.guide_map.sites.items()}
        divided = {n: g if factors[n] == 1 else g / factors[n] for n, g in target.items()}
        return divided, start, value


def draw_momenta(positions: Values) -> Values:
    """The momentum that each site starts with."""
    return {name: torch.randn_like(u) for name, u in positions.items()}


def draw_refreshments(positions: Values, options: AnnealedOptions) -> Values:
    """What the momentum of each site is refreshed by between the steps; 0 where all persists."""
    between = {n: u.expand(options.num_steps - 1, *u.shape) for n, u in positions.items()}
    draw = torch.zeros_like if options.persistence == 1 else torch.randn_like
    return {name: draw(u) for name, u in between.items()}


def _gradient(
    outputs: Sequence[Tensor], u: Values, weights: Sequence[Tensor], *, keeps: bool
) -> Values:
    """The gradient of a weighted sum in the positions, 0 where it depends on none."""
    pairs = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    gradients = torch.autograd.grad(
        [output for output, _ in pairs],
        list(u.values()),
        [weight for _, weight in pairs],
        retain_graph=True,
        create_graph=keeps,
        materialize_grads=True,
    )
    return dict(zip(u, gradients, strict=True))

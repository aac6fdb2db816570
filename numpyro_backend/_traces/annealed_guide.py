# SPDX-License-Identifier: MIT
"""A guide whose draws have been moved along the bridge from its own density to the posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jaxtyping import Float
from numpyro.distributions.util import scale_and_mask, sum_rightmost

from numpyro_backend._traces.flow import (
    LogJoint,
    Values,
    finite_rows,
    isolated,
    to_support,
    where_rows,
)
from numpyro_backend._traces.guide_map import GuideMap, GuideRun, Moved
from numpyro_backend._traces.initial_draw import DrawRecord, InitialDraw
from numpyro_backend._traces.refined_guide import InPlaceOf, point_mass
from numpyro_backend.integrators import Sites, annealed_leapfrog
from pyro_infovae._core.flow_options import AnnealedOptions
from pyro_infovae._core.integrators import LARGEST_MOMENTUM, resting
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import subsample_factor
from pyro_infovae._core.step_scale import adapted, scale_of


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step_size", "inverse_temperatures", "persistence", "surrogate_weights"],
    meta_fields=[],
)
@dataclass(frozen=True)
class AnnealedSettings:
    """The numbers that a flow runs with.

    Attributes:
        step_size: per site that moves, below a leading axis of steps.
        inverse_temperatures: (num_steps,).
        persistence: (num_steps - 1,).
        surrogate_weights: of the rows that stand for all data, in units of N over their number.
    """

    step_size: dict[str, Array]
    inverse_temperatures: Float[Array, " num_steps"]
    persistence: Float[Array, " num_steps-1"]
    surrogate_weights: Float[Array, " num_points"] | None


class Settings(Protocol):
    """Gives the numbers to run with."""

    @property
    def options(self) -> AnnealedOptions:
        """What they start from."""

    def monitor(self) -> dict[str, Array]:
        """What is known of the flow's gain, and the scale of its steps."""

    def __call__(
        self,
        positions: Mapping[str, Array],
        event_dims: Mapping[str, int],
        scale: Float[Array, ""],
    ) -> AnnealedSettings:
        """Those for sites that start at these positions, with steps of some scale."""


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
        checkpoint: whether backward computes each gradient again instead of keeping what it
            computed.
    """

    model: Program
    guide: Program
    settings: Settings
    sites: frozenset[str] | None = None
    in_training: bool = False
    checkpoint: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Run the guide, move its draws, and draw them where they end.

        Returns:
            The latents that flowed, by site name.
        """
        initial = InitialDraw(self.sites, moves_auxiliary=True)
        with initial:
            self.guide(*args, **kwargs)
        guide_map = map_of(self.guide, args, kwargs, initial, self.settings.options)
        given = {**initial.given, **initial.minibatches}
        latents = {name: site.value for name, site in initial.flowing.items()}
        log_joint = LogJoint(
            isolated(self.model, args, kwargs, {**given, **latents}),
            given,
            plates={name: site.plates for name, site in initial.flowing.items()},
        )
        surrogate = self.settings.options.surrogate
        if surrogate is not None:
            log_joint = log_joint.on_rows(surrogate, latents)
        bridge = _Bridge(guide_map, log_joint, self.checkpoint)
        bridge.check(initial)
        u_0, inside = guide_map.start, guide_map.inside
        monitor = self.settings.monitor()
        settings = self.settings(u_0, guide_map.event_dims, scale_of(monitor["state"]))
        if settings.surrogate_weights is not None:
            weighted = log_joint.weighted(settings.surrogate_weights)
            bridge = replace(bridge, log_joint=weighted)
        rho_0 = draw_momenta(u_0)
        noise = draw_refreshments(u_0, self.settings.options)
        moving = inside
        if self.in_training:
            still = jax.lax.stop_gradient((u_0, rho_0, noise, settings))
            finite = bridge.flow(*still, inside).finite
            moving = {name: inside[name] & rows for name, rows in finite.items()}
        flowed = bridge.flow(u_0, rho_0, noise, settings, moving)
        ended = {name: moving[name] & rows for name, rows in flowed.finite.items()}
        if self.in_training and self.settings.options.learn:
            lost = {name: inside[name] & ~rows for name, rows in ended.items()}
            gain = jax.lax.stop_gradient(bridge.gain(flowed, lost))
            state = monitor["state"]
            monitor["state"] = adapted(state, gain.astype(state.dtype), bridge.row_size)
        end = guide_map.end(
            {name: where_rows(ended[name], u, u_0[name]) for name, u in flowed.position.items()}
        )
        start_log_q = guide_map.at(u_0).log_q
        densities = dict(end.log_density)
        for name, site in guide_map.bases.items():
            log_ratio = jnp.where(ended[name], flowed.log_ratio[name], 0.0)
            density = start_log_q[name] - log_ratio - end.log_jacobian[name]
            if not self.in_training:
                density = jnp.where(ended[name] | ~inside[name], density, math.inf)
            densities[name] = jnp.where(inside[name], density, site.log_prob)
        return self._emitted(initial, end, densities)

    def _emitted(self, initial: InitialDraw, end: Moved, densities: Values) -> dict[str, Array]:
        """Draw all that the guide hid, in its place."""
        for name, site in {**initial.auxiliary, **initial.flowing}.items():
            value = end.values.get(name, site.value)
            fn = point_mass(value, densities.get(name, site.log_prob), site.mask)
            with InPlaceOf(site):
                numpyro.sample(name, fn, infer=site.infer)
        return {name: end.values[name] for name in initial.flowing}


def map_of(
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    initial: DrawRecord,
    options: AnnealedOptions,
) -> GuideMap:
    """The map of a guide that has been run.

    Args:
        guide: the guide.
        args: its positional arguments.
        kwargs: its keyword arguments.
        initial: the run.
        options: say whether lengths are in units of its scales.

    Raises:
        ValueError: for one that nothing can flow from.
    """
    initial.check()
    run = GuideRun(guide, args, kwargs, initial, options.precondition, numpyro.prng_key())
    return GuideMap.of(initial, run)


@dataclass(frozen=True)
class _Flowed:
    """Where a flow ends.

    Attributes:
        position: u_K by site name.
        log_ratio: what the momenta add to the log weight, row by row.
        log_joints: ℓ at the start and at the end.
        finite: the rows in which these are finite, and the momentum is below the largest.
        sound: the rows in which the force at the start is finite.
    """

    position: Values
    log_ratio: Values
    log_joints: tuple[Array, Array]
    finite: Values
    sound: Values


@dataclass(frozen=True)
class _Bridge:
    """The two densities of the positions that a flow goes between."""

    guide_map: GuideMap
    log_joint: LogJoint
    checkpoint: bool

    def check(self, initial: InitialDraw) -> None:
        """Refuse latents that cannot be moved.

        Raises:
            ValueError: naming the site and saying what to do.
        """
        bases, masses = self.guide_map.bases, self.guide_map.masses
        fns = self.log_joint.check(
            lambda positions: self.guide_map.at(positions).values,
            self.guide_map.start,
            {name: site.plates for name, site in bases.items()},
            {name: self.guide_map.latent_of(name) for name in bases},
        )
        shapes = {
            name: to_support(fns[name], name).inverse_shape(site.value.shape)
            for name, site in masses.items()
        }
        initial.check_densities(shapes)

    def flow(
        self,
        u_0: Values,
        rho_0: Values,
        noise: Values,
        settings: AnnealedSettings,
        moving: Values,
    ) -> _Flowed:
        """The flow of the rows that are to move, from the given start."""
        gradients = jax.checkpoint(self._gradients) if self.checkpoint else self._gradients
        position, momentum, log_ratio, (first, last) = annealed_leapfrog(
            u_0,
            rho_0,
            gradients,
            settings.inverse_temperatures,
            settings.persistence,
            noise,
            step_size={
                name: resting(settings.step_size[name], rows, u_0[name].shape, per_step=True)
                for name, rows in moving.items()
            },
            event_dims=self.guide_map.event_dims,
        )
        log_ratios = {
            name: sum_rightmost(terms, terms.ndim - self.guide_map.bases[name].batch_dim)
            for name, terms in log_ratio.items()
        }
        finite = {
            name: finite_rows(position[name], rows.ndim)
            & finite_rows(momentum[name], rows.ndim, below=LARGEST_MOMENTUM)
            & jnp.isfinite(jax.lax.stop_gradient(log_ratios[name]))
            for name, rows in moving.items()
        }
        return _Flowed(position, log_ratios, (first[0], last[0]), finite, first[1])

    def gain(self, flowed: _Flowed, lost: Values) -> Float[Array, ""]:
        """By how much log w is above that of the unmoved draw, in nats per row.

        It is infinitely below where a row diverged whose first force was finite.

        Args:
            flowed: where the flow ended.
            lost: which rows diverged, by site name.
        """
        first, last = flowed.log_joints
        total = last - first
        diverged = jnp.zeros((), bool)
        for name, site in self.guide_map.bases.items():
            rows = scale_and_mask(flowed.log_ratio[name], subsample_factor(site.plates), site.mask)
            total = total + rows.sum()
            diverged = diverged | (flowed.sound[name] & lost[name]).any()
        gain = jnp.where(jnp.isfinite(total), total, 0.0) / self._num_rows
        return jnp.where(diverged, -math.inf, gain)

    @property
    def row_size(self) -> float:
        """How many numbers of a row flow."""
        sites, u_0 = self.guide_map.bases, self.guide_map.start
        sizes = [u_0[name].size * subsample_factor(site.plates) for name, site in sites.items()]
        return sum(sizes) / self._num_rows

    @property
    def _num_rows(self) -> int:
        """How many rows there are in the data set."""
        plates = [site.plates for site in self.guide_map.bases.values()]
        return max((math.prod(f.full_size for f in frames) for frames in plates), default=1)

    def _gradients(self, positions: Values) -> tuple[Sites, Sites, Any]:
        """Those of ℓ, each datum's own, and of log q; and ℓ, with the rows of finite forces."""
        value, gradients = jax.value_and_grad(self._log_joint)(positions)
        factors = {name: subsample_factor(s.plates) for name, s in self.guide_map.bases.items()}
        target = {name: gradient / factors[name] for name, gradient in gradients.items()}
        sound = {
            name: finite_rows(target[name], len(rows.shape))
            for name, rows in self.guide_map.inside.items()
        }
        return target, jax.grad(self._log_q)(positions), (value, sound)

    def _log_joint(self, positions: Values) -> Float[Array, ""]:
        moved = self.guide_map.at(positions)
        value = self.log_joint.density(moved.values)
        for name, site in self.guide_map.bases.items():
            value = value + subsample_factor(site.plates) * moved.log_jacobian[name].sum()
        for name, site in self.guide_map.masses.items():
            value = value - subsample_factor(site.plates) * moved.log_density[name].sum()
        return value

    def _log_q(self, positions: Values) -> Float[Array, ""]:
        terms = self.guide_map.at(positions).log_q.values()
        return sum((term.sum() for term in terms), jnp.zeros(()))


def draw_momenta(positions: Values) -> Values:
    """The momentum that each site starts with."""
    return {name: _normal(u.shape, u.dtype) for name, u in positions.items()}


def draw_refreshments(positions: Values, options: AnnealedOptions) -> Values:
    """What the momentum of each site is refreshed by between the steps; 0 where all persists."""
    between = {n: (options.num_steps - 1, *u.shape) for n, u in positions.items()}
    if options.persistence == 1:
        return {name: jnp.zeros(between[name], u.dtype) for name, u in positions.items()}
    return {name: _normal(between[name], u.dtype) for name, u in positions.items()}


def _normal(shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.normal(numpyro.prng_key(), shape, dtype)

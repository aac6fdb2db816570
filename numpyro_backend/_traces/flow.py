# SPDX-License-Identifier: MIT
"""What a Hamiltonian flow follows: a model's log joint density in unconstrained space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jaxtyping import Bool, Float
from numpyro import handlers
from numpyro.distributions import Distribution, biject_to, constraints
from numpyro.distributions.transforms import IdentityTransform, Transform
from numpyro.distributions.util import scale_and_mask, sum_rightmost
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import CondIndepStackFrame, Messenger

from numpyro_backend._traces.enumeration import MARGINAL
from numpyro_backend._traces.recording import Message, copied, joint_mask
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import Plate, common_scale, subsample_factor
from pyro_infovae._core.surrogate import (
    WEIGHTS,
    NumPoints,
    Surrogate,
    Survey,
    check_indexed,
    surrogate_of,
)

Values: TypeAlias = dict[str, Array]
Position: TypeAlias = Callable[[str, Transform, int], tuple[Array, Array | None]]


@dataclass(frozen=True)
class Placed:
    """Where the flowing sites are.

    Attributes:
        constrained: the values z by site name, as the model sees them.
        unconstrained: the positions u, with z = T(u).
        log_jacobian: log|det J_T(u)| by site name, in the site's batch shape.
        inside: by site name, which rows were placed; one on the edge of its support was not, and
            stands at u = 0 instead.
    """

    constrained: Values
    unconstrained: Values
    log_jacobian: Values
    inside: Values


@dataclass(frozen=True)
class LogJoint:
    r"""The log joint density of a model in some latents, given the others and the minibatch.

    .. math:: \ell(u) = \log p(x, T(u)) + \log |\det J_T(u)|

    with T from the unconstrained space to each site's support. In a subsampled plate the force on
    a site is divided by the subsample factors of its plates, and everywhere by a scale that all
    sites of the model share, so that every datum is moved by its own posterior and not by a power
    of it.

    Attributes:
        program: the user's model with its arguments, see :func:`isolated`.
        given: the values of the other latents and of the minibatches, by site name.
        plates: for each flowing site the plates it is in, by site name.
        surrogate: rows of a plate that stand for all of its data, or None.
    """

    program: Callable[[], Any]
    given: Values
    plates: Mapping[str, tuple[Plate, ...]]
    surrogate: Surrogate | None = None

    def on_rows(self, surrogate: NumPoints, values: Values) -> LogJoint:
        """The log joint density of some rows that stand for all data of a plate.

        Args:
            surrogate: how many.
            values: of the flowing sites, to look at the model with; nothing is computed.

        Raises:
            ValueError: naming the plate, for a model that cannot run on other rows.
        """
        surveying = _Surveying(self, values)
        jax.eval_shape(lambda: self._run(surveying))
        survey = surveying.survey
        chosen = surrogate_of(surrogate, survey)

        def log_probs(minibatches: Values) -> list[Array]:
            seen = _Surveying(replace(self, given={**self.given, **minibatches}), values)
            self._run(seen)
            return seen.log_probs

        minibatch = jnp.arange(survey.plates[chosen.plate].size)
        survey.indexed.update(*sources_of(log_probs, {chosen.plate: minibatch}))
        check_indexed(chosen, survey)
        rows = {chosen.plate: jnp.asarray(chosen.rows)}
        return replace(self, surrogate=chosen, given={**self.given, **rows})

    def weighted(self, weights: Float[Array, " num_points"]) -> LogJoint:
        """The same with weights of the rows, in units of N over their number."""
        return replace(self, given={**self.given, WEIGHTS: weights})

    def unconstrain(self, values: Values) -> Placed:
        """The positions of the given values.

        Raises:
            ValueError: naming the site: for one that is no latent of the model, a latent that the
                guide does not draw, or one that each minibatch would move differently.
        """
        placing = _Placing(
            self, lambda name, transform, event_dim: inverse(values[name], transform, event_dim)
        )
        self._run(placing)
        _check_placed(values, placing)

        def log_probs(positions: Values) -> dict[str, list[Array]]:
            return self._score(positions).log_probs_by_plate

        latents = dict(zip(self.plates, self.plates, strict=True))
        self._check_subsampling(placing, self.plates, placing.unconstrained, log_probs, latents)
        return placing.placed

    def constrain(self, positions: Values) -> Placed:
        """The values at the given positions."""
        placing = _Placing(self, lambda name, *_: (positions[name], None))
        self._run(placing)
        return placing.placed

    def potential_grad(self, positions: Values) -> tuple[Values, Float[Array, ""]]:
        r"""The gradient :math:`-\nabla \ell` per site, each datum's own, and :math:`-\ell`."""

        def log_joint(positions: Values) -> Array:
            return jnp.asarray(self._score(positions).log_joint)

        value, gradients = jax.value_and_grad(log_joint)(positions)
        factors = {name: subsample_factor(self.plates[name]) for name in positions}
        return {name: -gradient / factors[name] for name, gradient in gradients.items()}, -value

    def density(self, values: Values) -> Array:
        """The log density of the model with the flowing sites at their values.

        Without a scale that all sites share. It is scaled up in a subsampled plate.
        """
        return jnp.asarray(self._score_values(values).log_joint)

    def check(
        self,
        values: Callable[[Values], Values],
        positions: Values,
        plates: Mapping[str, tuple[Plate, ...]],
        latents: Mapping[str, str],
    ) -> dict[str, Distribution]:
        """Check that the flowing sites are latents that a flow may move; nothing is computed.

        Args:
            values: from the positions of what moves to the values of the flowing sites.
            positions: where it starts, by name.
            plates: the plates that it is in.
            latents: by the name of what moves that of a latent that follows, for messages.

        Returns:
            The model's distribution of each flowing site.

        Raises:
            ValueError: naming the site: for one that is no latent of the model, a latent that the
                guide does not draw, or one that each minibatch would move differently.
        """
        scored: list[_ScoredValues] = []

        def log_probs(positions: Values) -> dict[str, list[Array]]:
            scored[:] = [self._score_values(values(positions))]
            _check_placed(self.plates, scored[0])
            return scored[0].log_probs_by_plate

        jax.eval_shape(log_probs, positions)
        self._check_subsampling(scored[0], plates, positions, log_probs, latents)
        return scored[0].fns

    def stands_for(self, plate: str) -> bool:
        """Whether rows stand for all data of a plate."""
        return self.surrogate is not None and self.surrogate.plate == plate

    def _score_values(self, values: Values) -> _ScoredValues:
        scored = _ScoredValues(self, lambda name, *_: (values[name], None))
        self._run(scored)
        return scored

    def _score(self, positions: Values) -> _Scored:
        scored = _Scored(self, lambda name, *_: (positions[name], None))
        self._run(scored)
        return scored

    def _run(self, handler: Messenger) -> None:
        with handlers.block(), handler:
            self.program()

    def _check_subsampling(
        self,
        placing: _Placing,
        moving: Mapping[str, tuple[Plate, ...]],
        positions: Values,
        log_probs: Callable[[Values], dict[str, list[Array]]],
        latents: Mapping[str, str],
    ) -> None:
        outside = [
            (plate, name)
            for plate, factor in placing.factors.items()
            if factor != 1 and not self.stands_for(plate)
            for name, plates in moving.items()
            if plate not in {plate.name for plate in plates}
        ]
        if not outside:
            return
        sources = sources_of(log_probs, positions)
        for plate, name in outside:
            if name not in frozenset[str]().union(*sources.get(plate, ())):
                continue
            latent = latents[name]
            if plate in placing.frames.get(latent, ()):
                raise ValueError(
                    f"Site '{latent}' is drawn outside plate '{plate}' by the guide, which is "
                    "subsampled, and inside by the model: declare the plate in the guide, or use "
                    "the whole plate"
                )
            raise ValueError(
                f"Site '{latent}' is outside plate '{plate}', which is subsampled: each minibatch "
                "would move it differently, and the bound would be lost; name others in sites, or "
                "use the whole plate"
            )


def sources_of(function: Callable[[Values], Any], positions: Values) -> Any:
    """By which of the positions each result of a function is determined; nothing is computed."""
    # Names of arguments: a site may be called anything.
    names = {f"position of {name}": name for name in positions}

    def renamed(**arguments: Array) -> Any:
        return function({names[argument]: array for argument, array in arguments.items()})

    arguments = {argument: positions[name] for argument, name in names.items()}
    sources = eval_provenance(renamed, **arguments)
    return jax.tree.map(
        lambda found: frozenset(names[argument] for argument in found),
        sources,
        is_leaf=lambda leaf: isinstance(leaf, frozenset),
    )


def isolated(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], latents: Values
) -> Callable[[], Any]:
    """The model with its arguments, parameters, mutable state and random key as they are now.

    It neither asks nor tells the handlers around it anything, so that it can run in a
    transformation, and any number of times.

    Args:
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        latents: values of its latents and minibatches, to find its parameters with.
    """
    rng_key = numpyro.prng_key()
    state = _State()
    with (
        handlers.block(hide_fn=lambda msg: msg["type"] not in _State.TYPES),
        handlers.seed(rng_seed=rng_key),
        handlers.substitute(data=latents),
        state,
    ):
        model(*args, **kwargs)

    def run() -> Any:
        with handlers.seed(rng_seed=rng_key), handlers.substitute(data=copied(state.values)):
            return model(*args, **kwargs)

    return run


def _check_placed(names: Iterable[str], placing: _Placing) -> None:
    for name in sorted(set(names) - placing.frames.keys()):
        raise ValueError(
            f"The guide draws '{name}', which is no latent of the model, so that it has no "
            "posterior to follow: leave it out of the guide or of sites, or mark it "
            "infer={'is_auxiliary': True} if other latents are computed from it"
        )


class _State(Messenger):
    """Keeps the parameters and the mutable state that a program starts from."""

    TYPES = ("param", "mutable")

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] in self.TYPES:
            self.values[msg["name"]] = msg["value"]
            # A copy for the program to change.
            msg["value"] = copied(msg["value"])


class _Placing(Messenger):
    """Puts the flowing sites at their positions and the other latents at their values."""

    def __init__(self, target: LogJoint, position: Position) -> None:
        super().__init__()
        self.target = target
        self.position = position
        self.constrained: Values = {}
        self.unconstrained: Values = {}
        self.log_jacobian: Values = {}
        self.inside: Values = {}
        self.factors: dict[str, float] = {}
        self.frames: dict[str, set[str]] = {}

    @property
    def placed(self) -> Placed:
        """Where the sites were put."""
        return Placed(self.constrained, self.unconstrained, self.log_jacobian, self.inside)

    def process_message(self, msg: Message) -> None:
        given = self.target.given
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("substitute", self._scanned))
        elif msg["type"] == "plate":
            msg["value"] = given.get(msg["name"], msg["value"])
            if self.target.stands_for(msg["name"]):
                msg["args"] = (msg["args"][0], len(msg["value"]))
        elif msg["type"] != "sample" or msg["is_observed"]:
            return
        elif msg["name"] in self.target.plates:
            self.frames[msg["name"]] = {frame.name for frame in msg["cond_indep_stack"]}
            self._place(msg)
        else:
            msg["value"] = self._given(msg["name"])

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "plate":
            self.factors[msg["name"]] = msg["args"][0] / len(msg["value"])

    def _place(self, msg: Message) -> None:
        name, fn = msg["name"], msg["fn"]
        transform = to_support(fn, name)
        u, inside = self.position(name, transform, fn.event_dim)
        z = transform(u)
        if inside is not None:
            self.inside[name] = inside
        density = transform.log_abs_det_jacobian(u, z)
        batch_dim = z.ndim - fn.event_dim
        self.unconstrained[name], self.constrained[name] = u, z
        self.log_jacobian[name] = sum_rightmost(density, density.ndim - batch_dim)
        msg["value"] = z

    def _scanned(self, msg: Message) -> Array | None:
        """The value of a site at one step of a ``scan``, which has a leading axis of steps."""
        if msg["is_observed"]:
            return None
        name, step = msg["name"], msg["infer"]["_scan_current_index"]
        if name not in self.target.plates:
            return self._given(name)[step]
        fn = msg["fn"]
        transform = to_support(fn, name)
        return transform(self.position(name, transform, fn.event_dim)[0][step])

    def _given(self, name: str) -> Array:
        if name not in self.target.given:
            raise ValueError(
                f"Site '{name}' is a latent of the model that the guide does not draw, and the "
                "flow needs its value: draw it in the guide, or observe it (to predict it, draw "
                "the others with the data and pass them as Predictive's posterior_samples)"
            )
        return self.target.given[name]


class _Scored(_Placing):
    """Adds up the log joint on the way."""

    def __init__(self, target: LogJoint, position: Position) -> None:
        super().__init__(target, position)
        self._density: Any = 0.0
        self._jacobian: Any = 0.0
        self._scales: list[Any] = []
        self.log_probs_by_plate: dict[str, list[Array]] = {}

    @property
    def log_joint(self) -> Any:
        """The log joint density, without a scale that all sites share."""
        return self._density / common_scale(self._scales) + self._jacobian

    def postprocess_message(self, msg: Message) -> None:
        super().postprocess_message(msg)
        if msg["type"] != "sample":
            return
        fn, name = msg["fn"], msg["name"]
        log_prob = self._weighted(fn.log_prob(msg["value"]), msg["cond_indep_stack"])
        self._density = self._density + scale_and_mask(log_prob, msg["scale"]).sum()
        frames = msg["cond_indep_stack"]
        factor = math.prod(self.factors.get(frame.name, 1.0) for frame in frames)
        self._scales.append((1.0 if msg["scale"] is None else msg["scale"]) / factor)
        for frame in frames:
            self.log_probs_by_plate.setdefault(frame.name, []).append(log_prob)
        if name in self.log_jacobian:
            factor = subsample_factor(self.target.plates[name])
            density = scale_and_mask(self.log_jacobian[name], factor, joint_mask(fn))
            self._jacobian = self._jacobian + density.sum()

    def _weighted(self, log_prob: Array, frames: Iterable[CondIndepStackFrame]) -> Array:
        """Each row of a surrogate with its weight."""
        weights = self.target.given.get(WEIGHTS)
        for frame in frames:
            if weights is not None and self.target.stands_for(frame.name):
                log_prob = log_prob * weights.reshape(weights.shape + (1,) * (-frame.dim - 1))
        return log_prob


class _ScoredValues(_Scored):
    """Puts the flowing sites at their values."""

    def __init__(self, target: LogJoint, position: Position) -> None:
        super().__init__(target, position)
        self.fns: dict[str, Distribution] = {}

    def _place(self, msg: Message) -> None:
        name, fn = msg["name"], msg["fn"]
        self.fns[name] = fn
        msg["value"], _ = self.position(name, IdentityTransform(), fn.event_dim)

    def _scanned(self, msg: Message) -> Array | None:
        name = msg["name"]
        if msg["is_observed"] or name not in self.target.plates:
            return super()._scanned(msg)
        value, _ = self.position(name, IdentityTransform(), msg["fn"].event_dim)
        return value[msg["infer"]["_scan_current_index"]]


class _Surveying(_Placing):
    """Finds out which plates a model observes data in; draws no minibatch.

    Attributes:
        survey: what was found.
        log_probs: of what is observed in plates.
    """

    def __init__(self, target: LogJoint, values: Values) -> None:
        super().__init__(target, lambda name, *_: (values[name], None))
        self.survey = Survey()
        self.log_probs: list[Array] = []
        self._full_sizes: dict[str, int] = {}
        self._looked_up: list[tuple[tuple[int, ...], int]] = []

    def process_message(self, msg: Message) -> None:
        super().process_message(msg)
        if msg["type"] == "subsample":
            # A whole plate looks nothing up.
            self._looked_up.append((msg["value"].shape, msg["kwargs"]["event_dim"]))
        elif msg["type"] == "plate":
            full_size, size = msg["args"]
            self._full_sizes[msg["name"]] = full_size
            if msg["value"] is None:
                msg["value"] = jnp.arange(size)

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] != "sample":
            return
        frames = msg["cond_indep_stack"]
        if not msg["is_observed"]:
            self.survey.latents[msg["name"]] = frozenset(frame.name for frame in frames)
            return
        if msg["name"] == MARGINAL:
            self.survey.enumerated.add(MARGINAL)
        for frame in frames:
            full_size = self._full_sizes.get(frame.name, frame.size)
            plate = Plate(frame.name, frame.dim, frame.size, full_size)
            self.survey.plates[frame.name] = plate
            for shape, event_dim in self._looked_up:
                if shape[frame.dim - event_dim :][:1] == (full_size,):
                    self.survey.indexed.add(frame.name)
        if frames:
            self.log_probs.append(msg["fn"].log_prob(msg["value"]))

    def _place(self, msg: Message) -> None:
        msg["value"], _ = self.position(msg["name"], IdentityTransform(), msg["fn"].event_dim)


def to_support(fn: Distribution, name: str) -> Transform:
    """From the unconstrained space to a site's support: the reals where it tells of none."""
    support = fn.support
    if support is None:
        support = constraints.independent(constraints.real, fn.event_dim)
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"Site '{name}' has the support {support}, which no known transform takes to "
            "the reals, where a flow moves: name others in sites"
        ) from error


def inverse(z: Array, transform: Transform, event_dim: int) -> tuple[Array, Array]:
    """The position of each row, and which rows have one; the others are put at 0."""
    batch_dim = z.ndim - event_dim
    u, pullback = jax.vjp(transform.inv, jax.lax.stop_gradient(z))
    (slope,) = pullback(jnp.ones_like(u))
    density = transform.log_abs_det_jacobian(u, transform(u))
    # Where the square of the slope overflows, so do the derivatives of a flow.
    steepest = float(jnp.finfo(slope.dtype).max) ** 0.5  # type: ignore[no-untyped-call]
    inside = finite_rows(u, batch_dim) & finite_rows(density, batch_dim)
    inside = inside & finite_rows(slope, batch_dim, below=steepest)
    middle = transform(jnp.zeros_like(u))
    return transform.inv(where_rows(inside, z, jax.lax.stop_gradient(middle))), inside


def finite_rows(array: Array, batch_dim: int, *, below: float = math.inf) -> Bool[Array, "*batch"]:
    """Which rows, of so many dims, are finite, and below a bound."""
    finite = abs(jax.lax.stop_gradient(array)) < below
    return finite.all(tuple(range(batch_dim, array.ndim)))


def where_rows(rows: Array, array: Array, other: Array) -> Array:
    """The rows of one array or of another."""
    return jnp.where(rows.reshape(rows.shape + (1,) * (array.ndim - rows.ndim)), array, other)

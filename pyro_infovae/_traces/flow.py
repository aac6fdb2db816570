# SPDX-License-Identifier: MIT
"""What a Hamiltonian flow follows: a model's log joint density in unconstrained space."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger, block_messengers
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK, Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_infovae._arrays.checkpointing import checkpointed_gradient, differentiable
from pyro_infovae._arrays.full_precision import raised
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import Plate, common_scale
from pyro_infovae._core.surrogate import (
    WEIGHTS,
    NumPoints,
    Surrogate,
    Survey,
    check_indexed,
    surrogate_of,
)
from pyro_infovae._traces.enumeration import enumerated_elbo
from pyro_infovae._traces.minibatches import of_rows, watched
from pyro_infovae._traces.recording import full_size, is_latent, is_number
from pyro_infovae._traces.runs import buffers_untouched, leaving_when

Values: TypeAlias = dict[str, Tensor]
Position: TypeAlias = Callable[[str, Transform, int], tuple[Tensor, Tensor | None]]


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

    Positions are in float32 at least, in which small steps are not lost.

    Attributes:
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        given: the values of the other latents and of the minibatches, by site name.
        plates: for each flowing site the plates it is in, by site name.
        outer: the plates around the whole program.
        max_plate_nesting: the depth of all plates; latents that the model enumerates, which the
            guide does not draw, are summed out in dims to the left of it.
        dtypes: of the flowing sites in the model, by site name, where their positions have another.
        surrogate: rows of a plate that stand for all of its data, or None.
    """

    model: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Values
    plates: Mapping[str, tuple[CondIndepStackFrame, ...]]
    outer: tuple[CondIndepStackFrame, ...]
    max_plate_nesting: int
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    surrogate: Surrogate | None = None

    def on_rows(
        self, surrogate: NumPoints, values: Values, weights: Float[Tensor, " num_points"] | None
    ) -> LogJoint:
        """The log joint density of some rows that stand for all data of a plate.

        Args:
            surrogate: how many.
            values: of the flowing sites, to look at the model with.
            weights: of the rows, in units of N over their number.

        Raises:
            ValueError: naming the plate, for a model that cannot run on other rows.
        """
        surveying = _Surveying(self, values)
        with torch.no_grad(), watched(surveying.survey.indexed):
            self._run(surveying)
        chosen = surrogate_of(surrogate, surveying.survey)
        check_indexed(chosen, surveying.survey)
        given = {name: value for name, value in self.given.items() if name != chosen.plate}
        if weights is not None:
            given[WEIGHTS] = weights
        return replace(self, surrogate=chosen, given=given)

    def stands_for(self, plate: str) -> bool:
        """Whether rows stand for all data of a plate."""
        return self.surrogate is not None and self.surrogate.plate == plate

    def unconstrain(self, values: Values) -> Placed:
        """The positions of the given values."""
        return self._place(
            values, lambda name, transform, rows: inverse(raised(values[name]), transform, rows)
        )

    def constrain(self, positions: Values) -> Placed:
        """The values at the given positions."""
        return self._place(positions, lambda name, *_: (positions[name], None))

    def potential_grad(self, positions: Values) -> tuple[Values, Tensor]:
        r"""The gradient :math:`-\nabla \ell` per site, each datum's own, and :math:`-\ell`."""
        names, others = list(positions), list(self.given)

        def log_joint(*tensors: Tensor) -> Tensor:
            u = dict(zip(names, tensors, strict=False))
            given = dict(zip(others, tensors[len(names) :], strict=True))
            scored = _Scored(self, given, lambda name, *_: (u[name], None))
            self._run(scored)
            return scored.log_joint

        gradients, value = checkpointed_gradient(
            log_joint, tuple(positions.values()), tuple(self.given.values())
        )
        factors = {name: subsample_factor(self.plates[name]) for name in names}
        return {
            name: -gradient / factors[name] for name, gradient in zip(names, gradients, strict=True)
        }, -value

    def density(self, values: Values, given: Values, last: LastRun | None = None) -> Tensor:
        """The log density of the model with the flowing sites at their values.

        Without a scale that all sites share. It is scaled up in a subsampled plate.

        Args:
            values: those of the flowing sites.
            given: those of the others and of the minibatches.
            last: takes the run as the one that is scored.
        """
        scored = _ScoredValues(self, given, lambda name, *_: (values[name], None))
        if last is None:
            self._run(scored)
        else:
            last.run(scored, self.args, self.kwargs)
        _check_placed(values, scored)
        return torch.as_tensor(scored.log_joint)

    def _place(self, values: Values, position: Position) -> Placed:
        placing = _Placing(self, self.given, position)
        self._run(placing, lambda: placing.constrained.keys() >= values.keys())
        _check_placed(values, placing)
        return Placed(
            placing.constrained, placing.unconstrained, placing.log_jacobian, placing.inside
        )

    def _run(self, handler: _Placing, is_done: Callable[[], bool] | None = None) -> None:
        with (
            hidden(self.outer),
            nullcontext() if self.surrogate is None else of_rows(self.surrogate),
            handler,
            nullcontext() if is_done is None else leaving_when(is_done),
            EnumMessenger(first_available_dim=-1 - self.max_plate_nesting),
        ):
            args, kwargs = differentiable((self.args, self.kwargs))
            self.model(*args, **kwargs)


def _check_placed(names: Iterable[str], placing: _Placing) -> None:
    for name in sorted(set(names) - placing.constrained.keys()):
        raise ValueError(
            f"The guide draws '{name}', which is no latent of the model, so that it has no "
            "posterior to follow: leave it out of the guide or of sites, or mark it "
            "infer={'is_auxiliary': True} if other latents are computed from it"
        )


class LastRun:
    """The run of the model at the end of a flow, which gives the last force and is scored.

    Attributes:
        trace: its trace; None where there was none.
    """

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self._model: Program = self._nothing
        self._depth = 0

    @contextmanager
    def of(self, model: Program) -> Iterator[None]:
        """The model to run, under the handlers that are around now and no other."""
        self.trace, self._model, self._depth = None, model, len(_PYRO_STACK)
        yield

    def run(self, scored: _Scored, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the model and keep its trace."""
        inner = _PYRO_STACK[self._depth :]
        hidden = block_messengers(lambda handler: handler in inner)
        with hidden, poutine.trace(graph_type="flat") as traced, scored:
            self._model(*args, **kwargs)
        self.trace = traced.trace
        for name, terms in scored.terms.items():
            self.trace.nodes[name].update(terms)

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """Stands for no model."""


def subsample_factor(frames: Collection[CondIndepStackFrame]) -> float:
    """The factor that Pyro scales the sites of a stack of plates by: the product of N / B."""
    return math.prod(full_size(frame) / frame.size for frame in frames)


class _Placing(Messenger):
    """Puts the flowing sites at their positions and the other latents at their values."""

    def __init__(
        self,
        target: LogJoint,
        given: Values,
        position: Position,
    ) -> None:
        super().__init__()
        self.target = target
        self.given = given
        self.position = position
        self.constrained: Values = {}
        self.unconstrained: Values = {}
        self.log_jacobian: Values = {}
        self.inside: Values = {}
        self.frames: dict[str, set[str]] = {}

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if msg["is_observed"]:
            return
        if name in self.target.plates:
            self.frames[name] = {frame.name for frame in msg["cond_indep_stack"]}
            self._put(msg)
            msg["done"] = True
        elif name in self.given:
            # It may have been enumerated, but the guide draws it.
            enumeration = ("_enumerate_dim", "_dim_to_id")
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k not in enumeration}
            msg["value"] = self.given[name]
            msg["done"] = True
        elif is_latent(msg) and msg["infer"].get("enumerate") != "parallel":
            raise ValueError(
                f"Site '{name}' is a latent of the model that the guide does not draw, and the "
                "flow needs its value: draw it in the guide, or observe it (to predict it, draw "
                "the others with the data and pass them as Predictive's posterior_samples)"
            )

    def _put(self, msg: Message) -> None:
        name, transform = msg["name"], to_support(msg["fn"], msg["name"])
        u, inside = self.position(name, transform, msg["fn"].event_dim)
        z = transform(u)
        if inside is not None:
            self.inside[name] = inside
        density = transform.log_abs_det_jacobian(u, z)
        batch_dim = z.dim() - msg["fn"].event_dim
        msg["value"] = z.to(self.target.dtypes.get(name, z.dtype))
        self.unconstrained[name], self.constrained[name] = u, msg["value"]
        self.log_jacobian[name] = sum_rightmost(density, density.dim() - batch_dim)


class _Scored(_Placing):
    """Adds up the log joint on the way."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._density: Any = 0.0
        self._jacobian: Any = 0.0
        self._scales: list[Any] = []
        self._messages: list[Message] = []
        self.terms: dict[str, dict[str, Any]] = {}

    @property
    def log_joint(self) -> Any:
        """The log joint density, without a scale that all sites share."""
        is_enumerated = any("_enumerate_dim" in msg["infer"] for msg in self._messages)
        density = enumerated_density(self._messages) if is_enumerated else self._density
        shared = common_scale(self._scales)
        return (density if is_number(shared, 1) else density / shared) + self._jacobian

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg):
            return
        self._messages.append(msg.copy())
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        log_prob = self._weighted(log_prob, msg["cond_indep_stack"])
        self._check_subsampling(msg, log_prob)
        scaled = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        total = scaled.sum()
        self.terms[msg["name"]] = {
            "unscaled_log_prob": log_prob,
            "log_prob": scaled,
            "log_prob_sum": total,
        }
        self._density = self._density + total
        if not msg["infer"].get("_deterministic"):
            self._scales.append(msg["scale"] / subsample_factor(msg["cond_indep_stack"]))
        if (name := msg["name"]) in self.log_jacobian:
            factor = subsample_factor(self.target.plates[name])
            density = scale_and_mask(self.log_jacobian[name], factor, msg["mask"])
            self._jacobian = self._jacobian + density.sum()

    def _weighted(self, log_prob: Tensor, frames: Iterable[CondIndepStackFrame]) -> Tensor:
        """Each row of a surrogate with its weight."""
        weights = self.given.get(WEIGHTS)
        for frame in frames:
            if weights is not None and frame.dim is not None and self.target.stands_for(frame.name):
                log_prob = log_prob * weights.reshape(weights.shape + (1,) * (-frame.dim - 1))
        return log_prob

    def _check_subsampling(self, msg: Message, log_prob: Tensor) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.size == full_size(frame) or self.target.stands_for(frame.name):
                continue
            for name, plates in self.target.plates.items():
                outside = frame.name not in {plate.name for plate in plates}
                if not outside or not depends(log_prob, self.unconstrained.get(name)):
                    continue
                if frame.name in self.frames[name]:
                    raise ValueError(
                        f"Site '{name}' is drawn outside plate '{frame.name}' by the guide, which "
                        "is subsampled, and inside by the model: declare the plate in the guide, "
                        "or use the whole plate"
                    )
                raise ValueError(
                    f"Site '{name}' is outside plate '{frame.name}', which is subsampled: each "
                    "minibatch would move it differently, and the bound would be lost; name others "
                    "in sites, or use the whole plate"
                )


class _ScoredValues(_Scored):
    """Puts the flowing sites at their values."""

    def _put(self, msg: Message) -> None:
        name = msg["name"]
        value, _ = self.position(name, Transform(), msg["fn"].event_dim)
        self.unconstrained[name] = self.constrained[name] = msg["value"] = value


class _Surveying(_Placing):
    """Finds out which plates a model observes data in; draws no minibatch.

    Attributes:
        survey: what was found.
    """

    def __init__(self, target: LogJoint, values: Values) -> None:
        super().__init__(target, target.given, lambda name, *_: (values[name], None))
        self.survey = Survey()

    def _pyro_sample(self, msg: Message) -> None:
        super()._pyro_sample(msg)
        fn = msg["fn"]
        if site_is_subsample(msg) and msg["value"] is None:
            msg["value"] = torch.arange(fn.subsample_size or fn.size, device=fn.device)
            msg["done"] = True

    def _pyro_subsample(self, msg: Message) -> None:
        # A whole plate looks nothing up.
        self.survey.indexed.update(frame.name for frame in msg["cond_indep_stack"])

    def _pyro_post_sample(self, msg: Message) -> None:
        name, outer = msg["name"], {frame.name for frame in self.target.outer}
        plates = {
            frame.name: Plate(frame.name, frame.dim, frame.size, full_size(frame))
            for frame in msg["cond_indep_stack"]
            if frame.dim is not None and frame.name not in outer
        }
        if is_latent(msg):
            self.survey.latents[name] = frozenset(plates)
            if "_enumerate_dim" in msg["infer"]:
                self.survey.enumerated.add(name)
        elif not (site_is_subsample(msg) or msg["infer"].get("_deterministic")):
            self.survey.plates.update(plates)

    def _put(self, msg: Message) -> None:
        msg["value"], _ = self.position(msg["name"], Transform(), msg["fn"].event_dim)


def is_enumerated(model: Trace) -> bool:
    """Whether a model's run holds all values of some latent."""
    return any("_enumerate_dim" in site.get("infer", {}) for site in model.nodes.values())


def enumerated_density(messages: Iterable[Message]) -> Tensor:
    """The log density of a model's sites, the enumerated latents summed out."""
    model = Trace()
    for msg in messages:
        model.add_node(msg["name"], **msg.copy())
    with pyro.validation_enabled(False):  # which warns of the nan of a row that diverged
        model.compute_log_prob()
    model.pack_tensors()
    return torch.as_tensor(enumerated_elbo(model, Trace()))


def to_support(fn: Any, name: str) -> Transform:
    """From the unconstrained space to a site's support: the reals where it tells of none."""
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        support = None
    if support is None:
        support = constraints.independent(constraints.real, fn.event_dim)
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"Site '{name}' has the support {support}, which no known transform takes to "
            "the reals, where a flow moves: name others in sites"
        ) from error


def inverse(z: Tensor, transform: Transform, event_dim: int) -> tuple[Tensor, Tensor]:
    """The position of each row, and which rows have one; the others are put at 0."""
    batch_dim = z.dim() - event_dim
    with torch.inference_mode(False), torch.enable_grad():
        at = differentiable(z).detach().requires_grad_()
        u = transform.inv(at)
        (slope,) = torch.autograd.grad(u.sum(), at)
    with torch.no_grad():
        u = u.detach()
        density = transform.log_abs_det_jacobian(u, transform(u))
        # Where the square of the slope overflows, so do the derivatives of a flow.
        steepest = torch.finfo(slope.dtype).max ** 0.5
        inside = finite_rows(u, batch_dim) & finite_rows(density, batch_dim)
        inside = inside & finite_rows(slope, batch_dim, below=steepest)
        middle = transform(torch.zeros_like(u))
    return transform.inv(where_rows(inside, z, middle)), inside


def finite_rows(tensor: Tensor, batch_dim: int, *, below: float = math.inf) -> Tensor:
    """Which rows, of so many dims, are finite, and below a bound."""
    finite = tensor.detach().abs() < below
    return finite.flatten(batch_dim).all(-1) if tensor.dim() > batch_dim else finite


def where_rows(rows: Tensor, tensor: Tensor, other: Tensor) -> Tensor:
    """The rows of one tensor or of another."""
    return torch.where(rows.view(rows.shape + (1,) * (tensor.dim() - rows.dim())), tensor, other)


def depends(tensor: Tensor, position: Tensor | None) -> bool:
    """Whether a tensor was computed from a position; where it was not, this computes nothing."""
    if position is None or not tensor.requires_grad:
        return False
    ones = torch.ones_like(tensor)
    (gradient,) = torch.autograd.grad(tensor, position, ones, retain_graph=True, allow_unused=True)
    return gradient is not None


class _OuterPlates(Messenger):
    def __init__(self, frames: tuple[CondIndepStackFrame, ...]) -> None:
        super().__init__()
        self.frames = frames

    def _pyro_sample(self, msg: Message) -> None:
        msg["cond_indep_stack"] = self.frames + msg["cond_indep_stack"]
        BroadcastMessenger._pyro_sample(msg)


@contextmanager
def hidden(outer: tuple[CondIndepStackFrame, ...]) -> Iterator[None]:
    """Runs of programs in the outer plates, which no handler around sees, nor any buffer."""
    with (
        pyro.validation_enabled(False),
        block_messengers(lambda _: True),
        _outer_plates(outer),
        buffers_untouched(),
    ):
        yield


@contextmanager
def _outer_plates(frames: tuple[CondIndepStackFrame, ...]) -> Iterator[None]:
    """Plates around the program, whether they are still open or, in backward, closed again."""
    closed = [frame for frame in frames if frame.name not in _DIM_ALLOCATOR._stack]
    for frame in closed:
        _DIM_ALLOCATOR.allocate(frame.name, frame.dim)
    try:
        with _OuterPlates(frames):
            yield
    finally:
        for frame in closed:
            _DIM_ALLOCATOR.free(frame.name, frame.dim)

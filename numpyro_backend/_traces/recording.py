# SPDX-License-Identifier: MIT
"""Programs whose sites are recorded, in records that may leave a ``vmap``, while a base scores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Bool
from numpyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    Normal,
)
from numpyro.primitives import Messenger

from pyro_infovae._core.programs import Program, RecordedProgram
from pyro_infovae._core.rows import Rows, Selection, check_reweighted
from pyro_infovae._core.sites import (
    Enumeration,
    Plate,
    Run,
    Site,
    Sites,
    check_kl_is_separable,
    kept_entries,
)

Message: TypeAlias = dict[str, Any]


def _register(record: type, arrays: set[str]) -> None:
    """Let JAX see the arrays of a record; its other fields are plain facts."""
    names = {field.name for field in fields(record)}
    jax.tree_util.register_dataclass(record, sorted(arrays), sorted(names - arrays))


_register(Site, {"value", "mask", "normal", "kept", "enumeration"})
_register(Run, {"guide", "model", "indices", "mutable"})
_register(Rows, {"latents", "weights", "data"})
jax.tree_util.register_pytree_node(
    Enumeration,
    lambda each: ((each.log_prob,), (each.dim, each.is_sampled)),
    lambda facts, arrays: Enumeration(facts[0], facts[1], arrays[0]),
)


class Recorded(RecordedProgram):
    """A program whose sites are recorded in each of its runs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; its sites are recorded."""
        with self.handler():
            return self.fn(*args, **kwargs)


class Recorder:
    r"""Records the run of a base ELBO and reweights the KL of the selected latents in it.

    The log densities of a selected latent :math:`z`, in model and guide alike, are multiplied by
    the KL weight :math:`w`, so that the base scores

    .. math:: -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z)).

    Args:
        selection: which latents the objective is about.
        kl_weight: the factor :math:`w` on their KL.
        reweighted: the latents it is for; by default those that the guide alone would select.
    """

    def __init__(
        self,
        selection: Selection,
        kl_weight: float = 1.0,
        reweighted: frozenset[str] | None = None,
    ) -> None:
        self.selection = selection
        self.kl_weight = kl_weight
        self.reweighted = reweighted
        self._guide_run = _GuideRun(self)
        self._scored_state: Any = None
        self._run: Run | None = None

    def guide(self, guide: Program) -> Recorded:
        """The guide, recorded."""
        return Recorded(guide, self._start_guide)

    def model(self, model: Program) -> Recorded:
        """The model, recorded."""
        return Recorded(model, lambda: _ModelRun(self, self._guide_run))

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """What the base scores for one particle happens in here, outside further transformations.

        Those are runs that look for dependencies, or differentiate; their values cannot leave.
        """
        outer = self._scored_state
        self._scored_state = _trace_state()
        try:
            yield
        finally:
            self._scored_state = outer

    def finish(self, run: Run) -> None:
        """Keep a run that is complete, unless it is one within a further transformation."""
        if _trace_state() == self._scored_state:
            self._run = run

    def run(self, base: object) -> Run:
        """The last run that was scored.

        Raises:
            NotImplementedError: for a base whose runs cannot be recorded.
        """
        if self._run is None:
            raise NotImplementedError(
                f"Expected a base ELBO that vectorises by vectorize_particles_fn alone; got "
                f"{type(base).__name__}, which runs model and guide inside a transformation of "
                "its own: use one such as Trace_ELBO()"
            )
        return self._run

    def _start_guide(self) -> Messenger:
        self._guide_run = _GuideRun(self)
        return self._guide_run


def reweight(msg: Message, weight: float) -> None:
    """Multiply the log density of a site; a weight of 0 masks it, since 0 times inf is nan."""
    if weight == 0:
        msg["fn"] = msg["fn"].mask(False)
    elif weight != 1:
        msg["scale"] = weight if msg["scale"] is None else weight * msg["scale"]


def _trace_state() -> Any:
    return get_opaque_trace_state()  # type: ignore[no-untyped-call]


class Record(Messenger):
    """Records one run of a program.

    Attributes:
        sites: its sample sites by name, in order.
        drawn: the sample site that is being drawn, without its value.
        indices: the minibatch of every subsampled plate, by its name.
        mutable: the values of its mutable sites, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: Sites = OrderedDict()
        self.indices: dict[str, Array] = {}
        self.mutable: dict[str, Any] = {}
        self._full_sizes: dict[str, int] = {}
        self._known_masks: list[Any] = []
        self.drawn: dict[str, Site] = {}

    def process_message(self, msg: Message) -> None:
        """Note what is about to be drawn, before an objective touches it."""
        if msg["type"] == "sample":
            site = _site_of(msg, self._full_sizes)
            numbers = {self._number(mask) for mask in masks_of(msg["fn"])}
            self.drawn[msg["name"]] = replace(site, mask_numbers=tuple(sorted(numbers)))

    def postprocess_message(self, msg: Message) -> None:
        """Keep what was drawn."""
        if msg["type"] == "sample":
            self.sites[msg["name"]] = replace(
                self.drawn.pop(msg["name"]),
                value=jnp.asarray(msg["value"]),
                enumeration=_enumeration(msg),
            )
        elif msg["type"] == "plate":
            full_size, size = msg["args"][0], len(msg["value"])
            self._full_sizes[msg["name"]] = full_size
            if size != full_size:
                self.indices[msg["name"]] = msg["value"]
        elif msg["type"] == "mutable":
            self.mutable[msg["name"]] = msg["value"]

    def _number(self, mask: Any) -> int:
        """The number of a mask among those of the run."""
        for number, known in enumerate(self._known_masks):
            if known is mask:
                return number
        self._known_masks.append(mask)
        return len(self._known_masks) - 1


class _GuideRun(Record):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.reweighted: set[str] = set()

    def process_message(self, msg: Message) -> None:
        super().process_message(msg)
        recorder = self.recorder
        if msg["type"] != "sample" or msg["is_observed"] or recorder.kl_weight == 1:
            return
        if recorder.reweighted is None:
            is_selected = recorder.selection.may_take(self.drawn[msg["name"]])
        else:
            is_selected = msg["name"] in recorder.reweighted
        if is_selected:
            self.reweighted.add(msg["name"])
            reweight(msg, recorder.kl_weight)


class _ModelRun(Record):
    def __init__(self, recorder: Recorder, guide: _GuideRun) -> None:
        super().__init__()
        self.recorder = recorder
        self.guide = guide

    def process_message(self, msg: Message) -> None:
        super().process_message(msg)
        is_drawn = msg["type"] == "sample" and not msg["is_observed"]
        if is_drawn and msg["name"] in self.guide.reweighted:
            reweight(msg, self.recorder.kl_weight)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            self.recorder.finish(self._checked_run())

    def _checked_run(self) -> Run:
        recorder = self.recorder
        run = Run(
            guide=self.guide.sites,
            model=self.sites,
            indices=self.indices,
            mutable={**self.guide.mutable, **self.mutable},
            selected=recorder.selection.select(self.guide.sites, self.sites),
        )
        if recorder.kl_weight != 1:
            check_reweighted(recorder, self.guide.reweighted, run.selected)
            for name in self.sites:
                if name in run.selected:
                    check_kl_is_separable(name, run, recorder.kl_weight)
        return run


def _site_of(msg: Message, full_sizes: Mapping[str, int]) -> Site:
    """The record of a message; of one that is about to be drawn, without a value."""
    fn = msg["fn"]
    kind = type(undecorated(fn)).__name__
    frames = sorted(msg["cond_indep_stack"], key=lambda frame: frame.dim)
    return Site(
        value=msg["value"],
        mask=joint_mask(fn),
        normal=_normal_parameters(fn),
        name=msg["name"],
        plates=tuple(
            Plate(frame.name, frame.dim, frame.size, full_sizes.get(frame.name, frame.size))
            for frame in frames
        ),
        event_dim=fn.event_dim,
        kind=kind,
        is_latent=not msg["is_observed"],
        is_data=msg["is_observed"] and kind != "Unit",
        is_auxiliary=msg["infer"].get("is_auxiliary", False),
        is_reparameterised=fn.has_rsample,
        masks_features=masks_features(fn),
        batch_shape=fn.batch_shape,
        asks_enumeration=bool(msg["infer"].get("enumerate")),
        kept=kept_entries(msg["value"], _masks(fn)) if msg["is_observed"] else None,
    )


def _enumeration(msg: Message) -> Enumeration | None:
    """How ``TraceEnum_ELBO`` enumerates a site; other bases name no dims, and draw it."""
    name, infer = msg["name"], msg["infer"]
    if msg["is_observed"] or infer.get("enumerate") != "parallel":
        return None
    dim = infer.get("name_to_dim", {}).get(name)
    if dim is None:
        return None
    return Enumeration(dim, False, msg["fn"].log_prob(msg["value"]))


def _normal_parameters(fn: Distribution) -> tuple[Array, Array] | None:
    """Location and scale of a diagonal normal or a point mass, of the shape of a draw."""
    base = undecorated(fn)
    if isinstance(base, Normal):
        parameters = base.loc, base.scale
    elif isinstance(base, Delta):
        parameters = base.v, jnp.zeros_like(base.v)
    else:
        return None
    loc, scale = (jnp.broadcast_to(part, fn.shape()) for part in parameters)
    return loc, scale


def undecorated(fn: Distribution) -> Distribution:
    """The distribution below its event dims, masks and expansions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def joint_mask(fn: Distribution) -> Bool[Array, " *batch"] | None:
    """Where all masks of a distribution are true; None where it has none."""
    masks = [jnp.asarray(mask) for mask in masks_of(fn)]
    if not masks:
        return None
    shape = jnp.broadcast_shapes(*(mask.shape for mask in masks))
    return reduce(jnp.logical_and, (jnp.broadcast_to(mask, shape) for mask in masks))


def masks_of(fn: Distribution) -> list[Any]:
    """The masks of whole rows of a distribution; one that is True is none."""
    masks = []
    while isinstance(fn, MaskedDistribution | ExpandedDistribution):
        mask = getattr(fn, "_mask", True)
        if mask is not True:
            masks.append(mask)
        fn = fn.base_dist
    return masks


def _masks(fn: Distribution) -> Iterator[tuple[Any, int]]:
    """The masks of a distribution, each with the event dims below it."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        yield getattr(fn, "_mask", True), fn.event_dim
        fn = fn.base_dist


def masks_features(fn: Distribution) -> bool:
    """Whether a distribution is masked below its event dims."""
    in_event = False
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        in_event = in_event or isinstance(fn, Independent)
        if in_event and isinstance(fn, MaskedDistribution) and fn._mask is not True:
            return True
        fn = fn.base_dist
    return False


def copied(tree: Any) -> Any:
    """A copy of a pytree for a program to change; its arrays are the same."""
    return jax.tree.map(lambda leaf: leaf, tree)

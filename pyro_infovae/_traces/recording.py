# SPDX-License-Identifier: MIT
"""Programs whose sites are recorded while a base ELBO scores them."""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution, Normal
from pyro.distributions.torch import Independent
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_infovae._core.programs import Program, RecordedProgram
from pyro_infovae._core.rows import Selection, check_reweighted
from pyro_infovae._core.sites import (
    Enumeration,
    Plate,
    Run,
    Site,
    Sites,
    check_kl_is_separable,
    kept_entries,
)

Messages: TypeAlias = dict[str, Message]

FLOWED = "_flowed"
"""Marks, in a site's ``infer``, a latent that a Hamiltonian flow has moved, and its finite rows."""

PARTICLE_PLATE = "num_particles_vectorized"
"""The plate under which Pyro's ELBOs vectorise their particles."""


class Recorded(RecordedProgram):
    """A program whose sites are recorded in each of its runs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; its sites are recorded."""
        with self.handler():
            return self.fn(*args, **kwargs)


class Recorder:
    r"""Records the runs of a base ELBO and reweights the KL of the selected latents in them.

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
        kl_weight: float | Tensor = 1.0,
        reweighted: frozenset[str] | None = None,
    ) -> None:
        self.selection = selection
        self.kl_weight = kl_weight
        self.reweighted = reweighted
        self._runs: dict[_GuideRun, Run] = {}
        self._guide_run = _GuideRun(self)

    def guide(self, guide: Program) -> Recorded:
        """The guide, recorded.

        Raises:
            NotImplementedError: for a guide that runs the model itself.
        """
        check_guide(guide)
        return Recorded(guide, self._start_guide)

    def model(self, model: Program) -> Recorded:
        """The model, recorded."""
        return Recorded(model, lambda: _ModelRun(self, self._guide_run))

    def last(self, count: int) -> tuple[Run, ...]:
        """The last ``count`` runs: the base may probe the plates in earlier ones."""
        return tuple(self._runs.values())[-count:]

    def finish(self, guide: _GuideRun, run: Run) -> None:
        """Check a run that is complete, and keep it; of a guide's several, the last."""
        if not is_number(self.kl_weight, 1):
            check_reweighted(self, guide.reweighted, run.selected)
            for name in run.model:
                if name in run.selected:
                    check_kl_is_separable(name, run, self.kl_weight)
        self._runs[guide] = run

    def _start_guide(self) -> Messenger:
        self._guide_run = _GuideRun(self)
        return self._guide_run


def check_guide(guide: Program) -> None:
    """Refuse a guide that runs the model itself.

    Raises:
        NotImplementedError: naming its class.
    """
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, GuideMessenger):
        raise NotImplementedError(
            f"Expected a guide that draws the latents; got {type(unwrapped).__name__}, which "
            "runs the model inside the guide: use an AutoGuide or a guide function"
        )


def is_number(weight: float | Tensor, number: float) -> bool:
    """Whether a weight is that number; a tensor is not, for to look would wait for its device."""
    return not isinstance(weight, Tensor) and weight == number


def reweight(msg: Message, weight: float | Tensor) -> None:
    """Multiply the log density of a site; a weight of 0 masks it, since 0 times inf is nan."""
    if is_number(weight, 0):
        msg["mask"] = False
    elif not is_number(weight, 1):
        msg["scale"] = msg["scale"] * weight


class Record(Messenger):
    """Records one run of a program.

    Attributes:
        sites: its sample sites by name, in order.
        indices: the minibatch of every plate, by its name.
        particle_plate: the plate of vectorised particles, if there is one.
        given: the plates whose minibatch the program is given.
        drawn: the plates whose minibatch is drawn.
        loops: the sequential plates, of which each turn draws a site of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: Sites = OrderedDict()
        self.indices: dict[str, Tensor] = {}
        self.particle_plate: Plate | None = None
        self.given: set[str] = set()
        self.drawn: set[str] = set()
        self.loops: set[str] = set()
        self._masks: dict[str, Any] = {}
        self._known_masks: list[Tensor] = []

    def _pyro_sample(self, msg: Message) -> None:
        # As the program has it: an objective may mask a site that it leaves out of the loss.
        self._masks[msg["name"]] = msg["mask"]
        if site_is_subsample(msg):
            if msg["value"] is not None:
                self.given.add(msg["name"])
            elif (msg["fn"].subsample_size or msg["fn"].size) < msg["fn"].size:
                self.drawn.add(msg["name"])

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg):
            self.indices[msg["name"]] = msg["value"]
            return
        for frame in msg["cond_indep_stack"]:
            if not frame.vectorized:
                self.loops.add(frame.name)
            if frame.name == PARTICLE_PLATE:
                self.particle_plate = Plate(frame.name, frame.dim, frame.size, frame.size)
        recorded = msg.copy()
        recorded["mask"] = self._masks[msg["name"]]
        site = _with_generating_normal(site_of(recorded), msg, self.sites)
        if site.mask is not None:
            numbers = {self._number(mask) for mask in masks_of(recorded, msg["value"].device)}
            site = replace(site, mask_numbers=tuple(sorted(numbers)))
        self.sites[msg["name"]] = site

    def _number(self, mask: Tensor) -> int:
        """The number of a mask among those of the run: two views of the same elements are one."""
        for number, known in enumerate(self._known_masks):
            if known is mask or _layout(known) == _layout(mask):
                return number
        self._known_masks.append(mask)
        return len(self._known_masks) - 1


class _GuideRun(Record):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.reweighted: set[str] = set()

    def _pyro_sample(self, msg: Message) -> None:
        super()._pyro_sample(msg)
        recorder = self.recorder
        if (
            is_number(recorder.kl_weight, 1)
            or not is_latent(msg)
            or msg["infer"].get("_do_not_trace")
        ):
            return
        if recorder.reweighted is None:
            is_selected = recorder.selection.may_take(site_of(msg))
        else:
            is_selected = msg["name"] in recorder.reweighted
        if is_selected:
            self.reweighted.add(msg["name"])
            reweight(msg, recorder.kl_weight)

    def _pyro_post_sample(self, msg: Message) -> None:
        if msg["infer"].get("enumerate") == "sequential" and "_enum_total" in msg["infer"]:
            raise NotImplementedError(
                f"Site '{msg['name']}' is enumerated sequentially, which runs the guide once per "
                "value: enumerate it in parallel, so that its rows can be weighted"
            )
        if not msg["infer"].get("_do_not_trace"):
            super()._pyro_post_sample(msg)


class _ModelRun(Record):
    def __init__(self, recorder: Recorder, guide: _GuideRun) -> None:
        super().__init__()
        self.recorder = recorder
        self.guide = guide

    def _pyro_sample(self, msg: Message) -> None:
        super()._pyro_sample(msg)
        if is_latent(msg) and msg["name"] in self.guide.reweighted:
            reweight(msg, self.recorder.kl_weight)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            _warn_of_other_minibatches(self.given & self.guide.drawn)
            if not any(site.plates for site in self.sites.values() if site.is_latent):
                _check_no_loops(self.recorder.selection, self.loops)
            run = Run(
                guide=self.guide.sites,
                model=self.sites,
                indices={**self.guide.indices, **self.indices},
                selected=self.recorder.selection.select(self.guide.sites, self.sites),
                particle_plate=self.particle_plate,
            )
            self.recorder.finish(self.guide, run)


def _check_no_loops(selection: Selection, loops: Collection[str]) -> None:
    if loops and selection.names is None:
        raise ValueError(
            f"{selection.caller}: no latent is left to penalise, for those in plate "
            f"'{min(loops)}' are drawn one by one: use a vectorised plate, 'with pyro.plate(...)' "
            "in the place of 'for'"
        )


def _warn_of_other_minibatches(plates: Iterable[str]) -> None:
    for plate in sorted(plates):
        warnings.warn(
            f"Plate '{plate}': the model is given its minibatch as subsample=, and the guide draws "
            "another one, which replaces it, so that latents meet the data of others: pass "
            "create_plates= to the automatic guide, or subsample= in a guide of your own",
            stacklevel=2,
        )


def site_of(msg: Message) -> Site:
    """The record of a message; of one that is about to be drawn, without a value."""
    fn, value, infer = msg["fn"], msg["value"], msg["infer"]
    frames = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]
    masks = _masks(msg) if value is not None else []
    return Site(
        value=value,
        mask=joint_mask(msg, value.device) if masks else None,
        normal=normal_parameters(fn),
        name=msg["name"],
        plates=tuple(
            _plate_of(frame, fn, value) for frame in sorted(frames, key=lambda frame: frame.dim)
        ),
        event_dim=fn.event_dim,
        kind=type(undecorated(fn)).__name__,
        is_latent=not msg["is_observed"],
        is_data=is_data(msg),
        is_auxiliary=infer.get("is_auxiliary", False),
        is_reparameterised=fn.has_rsample,
        masks_features=masks_features(fn),
        batch_shape=fn.batch_shape,
        asks_enumeration=bool(infer.get("enumerate")),
        enumeration=_enumeration(msg),
        kept=kept_entries(value, masks) if masks and msg["is_observed"] else None,
        scale=msg["scale"],
        fn=fn,
    )


def normal_parameters(fn: Distribution) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a diagonal normal, or of a point mass, whose scale is 0."""
    base = undecorated(fn)
    if isinstance(base, Normal):
        return base.loc, base.scale
    if isinstance(base, Delta):
        return base.v, torch.zeros_like(base.v)
    return None


def _with_generating_normal(site: Site, msg: Message, recorded: Sites) -> Site:
    """A point mass of ``AutoNormal`` over a real support, with the normal it was drawn from."""
    generating = recorded.get(f"{site.name}_unconstrained")
    if generating is None or FLOWED in msg["infer"]:
        return site
    same_space = generating.value.shape == site.value.shape
    return replace(site, normal=generating.normal) if same_space else site


def _enumeration(msg: Message) -> Enumeration | None:
    infer = msg["infer"]
    if "_enumerate_dim" not in infer or msg["value"] is None:
        return None
    log_prob = msg["fn"].log_prob(msg["value"])
    return Enumeration(infer["_enumerate_dim"], bool(infer.get("num_samples")), log_prob)


def is_latent(msg: Message) -> bool:
    """Whether a message is a draw of the program, neither an observation nor a minibatch."""
    return not msg["is_observed"] and not site_is_subsample(msg)


def is_data(msg: Message) -> bool:
    """Whether a message is an observation, neither a factor nor a deterministic value."""
    return msg["is_observed"] and not site_is_factor(msg) and not msg["infer"].get("_deterministic")


def _plate_of(frame: CondIndepStackFrame, fn: Any, value: Tensor | None) -> Plate:
    """A plate; one without a size has as many data as the site has rows."""
    if frame.size >= 0:
        return Plate(frame.name, frame.dim, frame.size, full_size(frame))
    batch = fn.batch_shape if value is None else value.shape[: value.dim() - fn.event_dim]
    size = batch[frame.dim] if len(batch) >= -frame.dim else 1
    return Plate(frame.name, frame.dim, size, size)


def full_size(frame: CondIndepStackFrame) -> int:
    """The number of data of a plate, of which a minibatch may hold fewer."""
    return frame.full_size or frame.size


def undecorated(fn: Distribution) -> Distribution:
    """The distribution below its event dims, masks and expansions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def joint_mask(msg: Message, device: torch.device) -> Tensor | None:
    """Where the masks of a site's context and distribution are all true; None without any."""
    masks = masks_of(msg, device)
    return reduce(operator.and_, masks) if masks else None


def masks_of(msg: Message, device: torch.device) -> list[Tensor]:
    """The masks of whole rows in a site's context and distribution; one that is True is none."""
    event_dim = msg["fn"].event_dim
    masks = []
    for mask, below in _masks(msg):
        above = event_dim - below
        if _masks_rows(mask, above):
            of_rows = mask
            for _ in range(above if isinstance(mask, Tensor) else 0):
                of_rows = of_rows[..., 0]
            masks.append(torch.as_tensor(of_rows, device=device))
    return masks


def _masks(msg: Message) -> list[tuple[Any, int]]:
    """The masks of a site's context and of its distribution, each with the event dims below it.

    A mask that is trivially true is none.
    """
    masks = [(msg["mask"], msg["fn"].event_dim), *_masks_below(msg["fn"])]
    return [(mask, below) for mask, below in masks if mask is not None and mask is not True]


def masks_features(fn: Any) -> bool:
    """Whether a distribution is masked below its event dims, and not in whole rows."""
    return not all(_masks_rows(mask, fn.event_dim - below) for mask, below in _masks_below(fn))


def _masks_below(fn: Any) -> Iterator[tuple[Any, int]]:
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        yield getattr(fn, "_mask", None), fn.event_dim
        fn = fn.base_dist


def _masks_rows(mask: Tensor | bool | None, event: int) -> bool:
    """Whether a mask is the same along its last dims, as one of size 1 is that was expanded.

    A mask of floats was copied when it was made boolean, so that only its values tell.
    """
    if not isinstance(mask, Tensor):
        return True
    if all(mask.shape[dim] == 1 or mask.stride(dim) == 0 for dim in range(-event, 0)):
        return True
    first = mask
    for dim in range(-event, 0):
        first = first.narrow(dim, 0, 1)
    return bool((mask == first).all())


def _layout(mask: Tensor) -> Any:
    """Where the elements of a mask are kept; of one that a transform wraps, itself."""
    try:
        storage = mask.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return id(mask)
    return storage, mask.storage_offset(), mask.shape, mask.stride()

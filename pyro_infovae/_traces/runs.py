# SPDX-License-Identifier: MIT
"""Runs of model and guide: recorded while a base ELBO scores them, and redrawn for the prior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyro
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_infovae.sites import PARTICLE_PLATE, Messages, Selection, is_latent

Program: TypeAlias = Callable[..., Any]


@dataclass
class Run:
    """One run of the guide and of the model replayed against it.

    Attributes:
        guide: the guide's sample messages by site name, in order.
        model: the model's sample messages by site name, in order.
        selected: the names the guide drew that the objective is about, auxiliary sites included.
    """

    guide: Messages = field(default_factory=dict)
    model: Messages = field(default_factory=dict)
    selected: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Recorded:
    """A program under a recording handler; ``fn`` is the program without it."""

    fn: Program
    handler: Callable[[], Messenger]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; its sites are recorded."""
        with self.handler():
            return self.fn(*args, **kwargs)


def unrecorded(program: Program) -> Program:
    """The user's own program: what a run that no objective scores has to call."""
    while isinstance(program, Recorded):
        program = program.fn
    return program


def recorded_like(program: Program, other: Program) -> Program:
    """The other program under the recording handlers of the first."""
    if not isinstance(program, Recorded):
        return other
    return Recorded(recorded_like(program.fn, other), program.handler)


class Recorder:
    r"""Records the runs of a base ELBO and reweights the KL of the selected latents in them.

    The log densities of a selected latent :math:`z`, in model and guide alike, are multiplied by
    the KL weight :math:`w`, so that the base scores

    .. math:: -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z)).

    Args:
        selection: which latents the objective is about.
        kl_weight: the factor :math:`w` on their KL.
    """

    def __init__(self, selection: Selection, kl_weight: float | Tensor) -> None:
        self.selection = selection
        self.kl_weight = kl_weight
        self.runs: list[Run] = []

    def guide(self, guide: Program) -> Recorded:
        """The guide, recorded.

        Raises:
            NotImplementedError: for a guide that runs the model itself.
        """
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, GuideMessenger):
            raise NotImplementedError(
                f"Expected a guide that draws the latents; got {type(unwrapped).__name__}, which "
                "runs the model inside the guide: use an AutoGuide or a guide function"
            )
        return Recorded(guide, lambda: _GuideRun(self))

    def model(self, model: Program) -> Recorded:
        """The model, recorded."""
        return Recorded(model, lambda: _ModelRun(self))

    def last(self, count: int) -> list[Run]:
        """The last ``count`` runs: the base may probe the plates in earlier ones."""
        return self.runs[-count:]


def is_number(weight: float | Tensor, number: float) -> bool:
    """Whether a weight is that number; a tensor is not, for to look would wait for its device."""
    return not isinstance(weight, Tensor) and weight == number


def reweight(msg: Message, weight: float | Tensor) -> None:
    """Multiply the log density of a site; a weight of 0 masks it, since 0 times inf is nan."""
    if is_number(weight, 0):
        msg["mask"] = False
    elif not is_number(weight, 1):
        msg["scale"] = msg["scale"] * weight


class _GuideRun(Messenger):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.run = Run()
        self.masks: dict[str, Any] = {}
        recorder.runs.append(self.run)

    def _pyro_sample(self, msg: Message) -> None:
        self.masks[msg["name"]] = msg["mask"]
        hidden = msg["infer"].get("_do_not_trace")
        if is_latent(msg) and not hidden and self.recorder.selection.takes(msg):
            self.run.selected.add(msg["name"])
            reweight(msg, self.recorder.kl_weight)

    def _pyro_post_sample(self, msg: Message) -> None:
        if msg["infer"].get("enumerate") == "sequential" and "_enum_total" in msg["infer"]:
            raise NotImplementedError(
                f"Site '{msg['name']}' is enumerated sequentially, which runs the guide once per "
                "value: enumerate it in parallel, so that its rows can be weighted"
            )
        if not msg["infer"].get("_do_not_trace"):
            self.run.guide[msg["name"]] = _with_mask(msg, self.masks)


class _ModelRun(Messenger):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.run = recorder.runs[-1]
        self.masks: dict[str, Any] = {}

    def _pyro_sample(self, msg: Message) -> None:
        self.masks[msg["name"]] = msg["mask"]
        if is_latent(msg) and msg["name"] in self.run.selected:
            reweight(msg, self.recorder.kl_weight)

    def _pyro_post_sample(self, msg: Message) -> None:
        self.run.model[msg["name"]] = _with_mask(msg, self.masks)
        is_weighted = not is_number(self.recorder.kl_weight, 1)
        if is_weighted and msg["name"] in self.run.selected:
            check_kl_is_separable(msg["name"], self.run, self.recorder.kl_weight)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            self.recorder.selection.check(self.run.guide, self.run.model)


def _with_mask(msg: Message, masks: dict[str, Any]) -> Message:
    copied = msg.copy()
    copied["mask"] = masks[msg["name"]]
    return copied


def check_kl_is_separable(name: str, run: Run, kl_weight: float | Tensor) -> None:
    """Refuse a KL weight that cannot be applied to one latent alone.

    Raises:
        NotImplementedError: when the guide's density of the latent sits in an auxiliary site that
            other latents share, or when its prior depends on a latent enumerated in the model.
    """
    shared = [
        other
        for other, msg in run.guide.items()
        if msg["infer"].get("is_auxiliary") and other not in run.selected
    ]
    if shared and isinstance(run.guide[name]["fn"], Delta):
        raise NotImplementedError(
            f"The KL of '{name}' cannot be weighted by {kl_weight:g}: the guide draws it from "
            f"'{shared[0]}', whose density is not its own; keep the weight at 1 (alpha=0 or "
            "beta=1), or use a guide with one density per latent, such as AutoNormal"
        )
    prior = run.model[name]["fn"].batch_shape
    enumerated = {
        other: msg["infer"]["_enumerate_dim"]
        for other, msg in run.model.items()
        if "_enumerate_dim" in msg["infer"] and other not in run.guide
    }
    for other, dim in enumerated.items():
        if len(prior) >= -dim and prior[dim] > 1:
            raise NotImplementedError(
                f"The KL of '{name}' cannot be weighted by {kl_weight:g}: its prior depends on "
                f"'{other}', which is summed out in the model; keep the weight at 1 (alpha=0 or "
                f"beta=1), or draw '{other}' in the guide"
            )


def draw_prior(
    model: Program, args: Any, kwargs: Any, run: Run, names: Collection[str]
) -> Messages:
    r"""Draw the named latents afresh from the model, all other latents as the guide drew them.

    The same minibatch is used, and the run stops right after the last of the named latents, so
    that the likelihood is not computed.

    Args:
        model: the user's model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        run: the run that gives the other latents and the minibatch.
        names: the latents to draw.

    Returns:
        The messages of the sample sites up to the last named latent.
    """
    kept = poutine.Trace()
    for name, msg in run.model.items():
        is_given = name in run.guide or site_is_subsample(msg)
        if name not in names and not msg["is_observed"] and is_given:
            kept.add_node(name, **msg)
    redraw = _Redraw()
    with (
        poutine.block(hide_fn=lambda msg: msg["type"] == "sample"),
        _particle_plate(run.model),
        poutine.replay(trace=kept),
        redraw,
        leaving_when(lambda: redraw.messages.keys() >= set(names)),
    ):
        unrecorded(model)(*args, **kwargs)
    return redraw.messages


class _Done(BaseException):
    """Leaves a program; no ``except Exception`` of the user's may stop it."""


class _Leave(Messenger):
    def __init__(self, is_done: Callable[[], bool]) -> None:
        super().__init__()
        self.is_done = is_done

    def _pyro_post_sample(self, msg: Message) -> None:
        if self.is_done():
            raise _Done


@contextmanager
def leaving_when(is_done: Callable[[], bool]) -> Iterator[None]:
    """Run a program only up to the sample site after which ``is_done()``."""
    try:
        with _Leave(is_done):
            yield
    except _Done:
        pass


class _Redraw(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.messages: Messages = {}

    def _pyro_post_sample(self, msg: Message) -> None:
        self.messages[msg["name"]] = msg.copy()


@contextmanager
def _particle_plate(messages: Messages) -> Iterator[None]:
    frames = (f for msg in messages.values() for f in msg["cond_indep_stack"])
    frame = next((f for f in frames if f.name == PARTICLE_PLATE), None)
    if frame is None:
        yield
    else:
        with pyro.plate(frame.name, frame.size, dim=frame.dim):
            yield

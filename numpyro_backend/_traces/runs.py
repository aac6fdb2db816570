# SPDX-License-Identifier: MIT
"""Runs of model and guide: recorded while a base ELBO scores them, and redrawn for the prior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
from jax import Array
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Key
from numpyro import handlers
from numpyro.primitives import Messenger

from numpyro_backend._traces.recording import Message, Record
from numpyro_backend.sites import Selection, Sites, drawn_in_plates, is_latent

Program: TypeAlias = Callable[..., Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Run:
    """One run of the guide and of the model replayed against it: a pytree.

    Attributes:
        guide: the guide's sample sites by name, in order.
        model: the model's sample sites by name, in order.
        indices: the minibatch of every subsampled plate, by its name.
        mutable: the values of the mutable sites after the run, by name.
        selected: the names the guide drew that the objective is about.
    """

    guide: Sites
    model: Sites
    indices: dict[str, Array]
    mutable: dict[str, Any]
    selected: frozenset[str] = field(metadata={"static": True})


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
    r"""Records the run of a base ELBO and reweights the KL of the selected latents in it.

    The log densities of a selected latent :math:`z`, in model and guide alike, are multiplied by
    the KL weight :math:`w`, so that the base scores

    .. math:: -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z)).

    Args:
        selection: which latents the objective is about.
        kl_weight: the factor :math:`w` on their KL.
    """

    def __init__(self, selection: Selection, kl_weight: float) -> None:
        self.selection = selection
        self.kl_weight = kl_weight
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


class _GuideRun(Record):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.selected: set[str] = set()

    def process_message(self, msg: Message) -> None:
        super().process_message(msg)
        if msg["type"] != "sample":
            return
        site = self.drawn[msg["name"]]
        if is_latent(site) and self.recorder.selection.takes(site):
            self.selected.add(site.name)
            reweight(msg, self.recorder.kl_weight)


class _ModelRun(Record):
    def __init__(self, recorder: Recorder, guide: _GuideRun) -> None:
        super().__init__()
        self.recorder = recorder
        self.guide = guide

    def process_message(self, msg: Message) -> None:
        super().process_message(msg)
        is_drawn = msg["type"] == "sample" and not msg["is_observed"]
        if is_drawn and msg["name"] in self.guide.selected:
            reweight(msg, self.recorder.kl_weight)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            self.recorder.finish(self._checked_run())

    def _checked_run(self) -> Run:
        guide, model, selection = self.guide.sites, self.sites, self.recorder.selection
        outside_plates = [
            name
            for name, site in model.items()
            if is_latent(site)
            and name in guide.keys() - self.guide.selected
            and selection.takes(drawn_in_plates(name, guide, model))
        ]
        run = Run(
            guide=guide,
            model=model,
            indices=self.indices,
            mutable={**self.guide.mutable, **self.mutable},
            selected=frozenset(self.guide.selected.union(outside_plates)),
        )
        if self.recorder.kl_weight != 1:
            for name in model:
                if name in run.selected:
                    check_kl_is_separable(name, run, self.recorder.kl_weight)
            for name in outside_plates:
                raise NotImplementedError(
                    f"The KL of '{name}' cannot be weighted by {self.recorder.kl_weight:g}: the "
                    "guide draws it outside its plates "
                    f"{[plate.name for plate in model[name].plates]}: declare them in the guide"
                )
        selection.check(guide, model)
        return run


def check_kl_is_separable(name: str, run: Run, kl_weight: float) -> None:
    """Refuse a KL weight that cannot be applied to one latent alone.

    Raises:
        NotImplementedError: when the guide's density of the latent sits in an auxiliary site that
            other latents share.
    """
    shared = [
        other
        for other, site in run.guide.items()
        if site.is_auxiliary and other not in run.selected
    ]
    if shared and run.guide[name].kind == "Delta":
        raise NotImplementedError(
            f"The KL of '{name}' cannot be weighted by {kl_weight:g}: the guide draws it from "
            f"'{shared[0]}', whose density is not its own; keep the weight at 1 (alpha=0 or "
            "beta=1), or use a guide with one density per latent, such as AutoNormal"
        )


def draw_prior(
    model: Program,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Run,
    names: Collection[str],
) -> Sites:
    r"""Draw the named latents afresh from the model, all other latents as the guide drew them.

    The same minibatch is used, and the run stops right after the last of the named latents, so
    that the likelihood is not computed.

    Args:
        model: the user's model.
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name.
        args: the model's positional arguments.
        kwargs: its keyword arguments.
        run: the run that gives the other latents and the minibatch.
        names: the latents to draw.

    Returns:
        The sample sites up to the last named latent.
    """
    kept = {
        name: site.value
        for name, site in run.model.items()
        if name not in names and is_latent(site) and name in run.guide
    }
    redraw = Record()
    with (
        handlers.seed(rng_seed=rng_key),
        handlers.substitute(data={**params, **run.indices, **kept}),
        redraw,
        leaving_when(lambda: redraw.sites.keys() >= set(names)),
    ):
        unrecorded(model)(*args, **kwargs)
    return redraw.sites


class _Done(BaseException):
    """Leaves a program; no ``except Exception`` of the user's may stop it."""


class _Leave(Messenger):
    def __init__(self, is_done: Callable[[], bool]) -> None:
        super().__init__()
        self.is_done = is_done

    def postprocess_message(self, msg: Message) -> None:
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

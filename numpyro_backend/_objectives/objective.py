# SPDX-License-Identifier: MIT
"""One evaluation of an ELBO, and the loss that every objective derives from it."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.primitives import Messenger

from numpyro_backend._traces.recording import Message, Recorded, Recorder
from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.programs import Program
from pyro_infovae._core.sites import Run


class Objective(ELBO):
    """An ELBO of which a subclass says one thing: how a model and a guide are evaluated."""

    @abstractmethod
    def evaluate(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> Evaluation:
        """Run model and guide, and return the loss with what is known of it.

        Args:
            rng_key: the key to draw with.
            param_map: the values of parameters and mutable sites, by name.
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """

    def loss_with_mutable_state(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in nats and the values of the mutable sites, those of the first particle.

        Args:
            rng_key: the key to draw with.
            param_map: the values of parameters and mutable sites, by name.
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        evaluation = self.evaluate(rng_key, param_map, model, guide, *args, **kwargs)
        return {"loss": evaluation.loss, "mutable_state": evaluation.mutable_state}


class TraceAnalyticKL_ELBO(TraceMeanField_ELBO):
    r"""The stock ELBO with every KL in closed form where that is valid, sampled otherwise.

    .. math:: \mathrm{loss} = -E_q[\log p(x \mid z)] + \mathrm{KL}(q(z \mid x) \| p(z))

    in nats, summed over the data set. Where model and guide visit the latents in the same order and
    scale them alike it is :class:`~numpyro.infer.TraceMeanField_ELBO`, elsewhere
    :class:`~numpyro.infer.Trace_ELBO`.
    """

    multi_sample_guide = False

    def loss_with_mutable_state(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in nats and the values of the mutable sites.

        Args:
            rng_key: the key to draw with.
            param_map: the values of parameters and mutable sites, by name.
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        order = _Order()
        ordered = Recorded(model, order.model), Recorded(guide, order.guide)
        try:
            stock = TraceMeanField_ELBO.loss_with_mutable_state
            return stock(self, rng_key, param_map, *ordered, *args, **kwargs)
        except _NoClosedForm:
            stock = Trace_ELBO.loss_with_mutable_state
            return stock(self, rng_key, param_map, model, guide, *args, **kwargs)


class _NoClosedForm(BaseException):
    """Leaves a run whose KL has to be sampled."""


class _Order:
    """Compares the latents of the model, and their scales, with those of the guide."""

    def __init__(self) -> None:
        self._guide_run = _Latents()

    def guide(self) -> Messenger:
        self._guide_run = _Latents()
        return self._guide_run

    def model(self) -> Messenger:
        return _SameLatents(self._guide_run)


class _Latents(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.latents: list[tuple[str, Any]] = []

    def process_message(self, msg: Message) -> None:
        is_latent = msg["type"] == "sample" and not msg["is_observed"]
        if is_latent and not msg["infer"].get("is_auxiliary"):
            # One factor weighs all of a closed form; one that is traced cannot be compared.
            scale = 1.0 if msg["scale"] is None else msg["scale"]
            self.latents.append((msg["name"], None if isinstance(scale, Array) else scale))


class _SameLatents(_Latents):
    def __init__(self, guide_run: _Latents) -> None:
        super().__init__()
        self.guide_run = guide_run

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and self.latents != self.guide_run.latents:
            raise _NoClosedForm


def evaluate_recorded(
    base: ELBO,
    recorder: Recorder,
    vectorize: Callable[..., Any],
    rng_key: Key[Array, ""],
    params: dict[str, Any],
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Evaluation, Run]:
    """Evaluate an ELBO, ours or NumPyro's, on programs that are recorded.

    Args:
        base: the ELBO.
        recorder: records its runs.
        vectorize: maps a function over the keys of the particles.
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name.
        model: the model.
        guide: the guide.
        args: the positional arguments of both.
        kwargs: the keyword arguments of both.

    Returns:
        The evaluation, and the scored runs, their arrays stacked along a leading axis of particles.

    Raises:
        NotImplementedError: for a base whose runs cannot be recorded.
    """
    stacked: list[Run] = []

    def vectorize_recorded(single_particle: Callable[..., Any], keys: Array) -> Any:
        def with_run(key: Array) -> tuple[Any, Run]:
            with recorder.scoring():
                value = single_particle(key)
            return value, recorder.run(base)

        values, runs = vectorize(with_run, keys)
        stacked.append(runs)
        return values

    recorded_base = copy.copy(base)
    recorded_base.vectorize_particles_fn = vectorize_recorded
    programs = recorder.model(model), recorder.guide(guide)
    with recorder.scoring(), _ignoring_lost_state() if base.num_particles > 1 else nullcontext():
        evaluation = _evaluate(recorded_base, rng_key, params, *programs, *args, **kwargs)
    runs = stacked[-1] if stacked else _stack_one(recorder.run(base))
    mutable = jax.tree.map(lambda leaf: leaf[0], runs.mutable)
    return replace(evaluation, mutable_state=mutable or None), runs


@contextmanager
def _ignoring_lost_state() -> Iterator[None]:
    """Where NumPyro says that it loses the mutable state of several particles; the runs hold it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "mutable state is currently ignored")
        yield


def _evaluate(base: ELBO, *args: Any, **kwargs: Any) -> Evaluation:
    if isinstance(base, Objective):
        return base.evaluate(*args, **kwargs)
    # The bases without mutable state know no other method than this one.
    if type(base).loss_with_mutable_state is ELBO.loss_with_mutable_state:
        return Evaluation(base.loss(*args, **kwargs))
    return Evaluation(base.loss_with_mutable_state(*args, **kwargs)["loss"])


def _stack_one(run: Run) -> Run:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], run)

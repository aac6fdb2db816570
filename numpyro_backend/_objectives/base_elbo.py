# SPDX-License-Identifier: MIT
"""The ELBO below a penalty: the default one, and the scored run of any together with its loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.primitives import Messenger

from numpyro_backend._traces.recording import Message
from numpyro_backend._traces.runs import Program, Recorded, Recorder, Run


class TraceAnalyticKL_ELBO(TraceMeanField_ELBO):
    r"""The stock ELBO with every KL in closed form where that is valid, sampled otherwise.

    .. math:: \mathrm{loss} = -E_q[\log p(x \mid z)] + \mathrm{KL}(q(z \mid x) \| p(z))

    in nats, summed over the data set. Where model and guide visit the latents in the same order it
    is :class:`~numpyro.infer.TraceMeanField_ELBO`, elsewhere :class:`~numpyro.infer.Trace_ELBO`.
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
    """Compares the latents of the model with those of the guide."""

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
        self.latents: list[str] = []

    def process_message(self, msg: Message) -> None:
        is_latent = msg["type"] == "sample" and not msg["is_observed"]
        if is_latent and not msg["infer"].get("is_auxiliary"):
            self.latents.append(msg["name"])


class _SameLatents(_Latents):
    def __init__(self, guide_run: _Latents) -> None:
        super().__init__()
        self.guide_run = guide_run

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and self.latents != self.guide_run.latents:
            raise _NoClosedForm


@dataclass(frozen=True)
class Scored:
    """What a base ELBO makes of a model and a guide.

    Attributes:
        loss: the loss in nats.
        runs: the scored runs, their arrays stacked along a leading axis of particles.
        mutable_state: the values of the mutable sites after the first particle's run, or None.
    """

    loss: Float[Array, ""]
    runs: Run
    mutable_state: dict[str, Any] | None


def score(
    base: ELBO,
    recorder: Recorder,
    vectorize: Callable[..., Any],
    rng_key: Key[Array, ""],
    params: dict[str, Any],
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Scored:
    """Run a base ELBO on a model and a guide, and keep its runs.

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
    with recorder.scoring(), warnings.catch_warnings():
        if base.num_particles > 1:  # Its state is kept here: the runs hold it.
            warnings.filterwarnings("ignore", "mutable state is currently ignored")
        loss = _loss(recorded_base)(rng_key, params, *programs, *args, **kwargs)
    runs = stacked[-1] if stacked else _stack_one(recorder.run(base))
    mutable = jax.tree.map(lambda leaf: leaf[0], runs.mutable)
    return Scored(loss, runs, mutable or None)


def _loss(base: ELBO) -> Callable[..., Any]:
    """The base's loss; the bases without mutable state know no other method."""
    if type(base).loss_with_mutable_state is ELBO.loss_with_mutable_state:
        return base.loss
    return lambda *args, **kwargs: base.loss_with_mutable_state(*args, **kwargs)["loss"]


def _stack_one(run: Run) -> Run:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], run)

"""Models and guides of data sets that share a plate and nothing else, and their fits."""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hvae_gaussian_parts import methods
from hvae_gaussian_parts.methods import Method, Snapshot
from hvae_gaussian_parts.problem import DataSets, Parameters

Program = Callable[[], Any]


def programs(half: Any, data: DataSets) -> dict[str, Program]:
    """The programs for some data sets, by their names: of flows, and of mean-field normals."""
    ppl, dist, xp = half.ppl, half.dist, half.xp
    mean, scatter = half.array(data.mean), half.array(data.scatter)

    def data_sets() -> Any:
        return ppl.plate("data_sets", len(mean))

    def parameters() -> tuple[Any, Any]:
        return (
            ppl.param("shift", xp.zeros_like(mean)),
            ppl.param("log_sigma", xp.full_like(mean, methods.LOG_SIGMA)),
        )

    def variational_parameters() -> tuple[Any, Any]:
        return (
            ppl.param("loc", xp.zeros_like(mean)),
            ppl.param("log_scale", xp.full_like(mean, methods.LOG_SCALE)),
        )

    def log_likelihood(z: Any, shift: Any, log_sigma: Any) -> Any:
        """The likelihood log p(D | z), of shape (*particles, data sets)."""
        precision = xp.exp(-2 * log_sigma)
        constant = data.size * (log_sigma + 0.5 * math.log(2 * math.pi)) + 0.5 * precision * scatter
        distance = (precision * (z + (shift - mean)) ** 2).sum(-1)
        return -constant.sum(-1) - 0.5 * data.size * distance

    def latent() -> Any:
        return ppl.sample("z", dist.Normal(xp.zeros_like(mean[0]), 1.0).to_event(1))

    def prior() -> None:
        """Where the flows start: a guide that learns nothing."""
        with data_sets():
            latent()

    def model() -> None:
        """A latent per data set, and the data given it."""
        shift, log_sigma = parameters()
        with data_sets():
            z = latent()
            ppl.factor("data", log_likelihood(z, shift, log_sigma))

    def mean_field() -> None:
        """A guide that learns a normal."""
        loc, log_scale = variational_parameters()
        with data_sets():
            ppl.sample("z", dist.Normal(loc, xp.exp(log_scale)).to_event(1))

    def bound() -> None:
        """That of model and `mean_field`, whose expectations are known: nothing is drawn."""
        shift, log_sigma = parameters()
        loc, log_scale = variational_parameters()
        spread = 0.5 * data.size * xp.exp(2 * (log_scale - log_sigma)).sum(-1)
        kl = (0.5 * (loc**2 + xp.exp(2 * log_scale) - 1) - log_scale).sum(-1)
        with data_sets():
            ppl.factor("bound", log_likelihood(loc, shift, log_sigma) - spread - kl)

    return {"model": model, "prior": prior, "mean_field": mean_field, "bound": bound}


def fit(
    method: Method,
    data: DataSets,
    checkpoints: Sequence[int],
    *,
    learning_rate: float,
    draws: int,
    seed: int,
    backend: str,
    device: str,
) -> Iterator[Snapshot]:
    """Train, and tell after some numbers of steps what has been learned.

    Sums of squares over ten thousand data leave single precision no digits for the bound.
    """
    half = importlib.import_module(f"halves.with_{backend}")
    with half.computing(device, double=True):
        of = programs(half, data)
        flows = method.num_steps > 0
        if flows:
            objective = half.TraceHamiltonian_ELBO(
                method.num_steps,
                half.xp.full_like(half.array(data.mean), methods.STEP_SIZE),
                beta_0=methods.BETA_0,
                tempering=method.tempering,
                **half.particles(methods.PARTICLES, plates=1),
                path="posterior",
            )
        else:
            objective = half.Trace_ELBO()
        trained = (of["model"], of["prior"]) if flows else (of["bound"], lambda: None)
        optimiser = half.rms_prop(learning_rate, methods.RMS_DECAY)
        fitting = half.Fitting(*trained, objective, optimiser, seed=seed)
        looked_at = {} if flows else {"model": of["model"], "guide": of["mean_field"]}
        taken = 0
        for steps in checkpoints:
            fitting.advance(steps - taken)
            taken = steps
            bound = fitting.log_weights(draws, **looked_at).mean(0)
            learned = Parameters(fitting.param("shift"), np.exp(fitting.param("log_sigma")))
            yield Snapshot(steps, learned, bound, fitting.flow_settings()[1] ** -0.5)

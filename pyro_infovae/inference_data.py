# SPDX-License-Identifier: MIT
"""From a model and its guide to ArviZ: posterior, predictions, log likelihoods and prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from jaxtyping import Shaped
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_infovae._core.arviz import (
    TO_INFERENCE_DATA,
    build,
    check_draws,
    check_names,
    check_sites,
    describe,
    load_arviz,
    sites_of_groups,
)
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.draws import Arrays, Axes, Draws, num_event_dims
from pyro_infovae._core.programs import Program
from pyro_infovae._diagnostics.data_runs import to_numpy
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae._traces.importance_weights import chunk_sizes
from pyro_infovae._traces.recording import (
    PARTICLE_PLATE,
    Messages,
    full_size,
    is_data,
    is_latent,
    joint_mask,
)
from pyro_infovae.trace_hamiltonian_elbo import TraceHamiltonian_ELBO

__all__ = ["to_inference_data"]


@documented(TO_INFERENCE_DATA)
def to_inference_data(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    refine: TraceHamiltonian_ELBO | None = None,
    objective: ELBO | None = None,
    **kwargs: Any,
) -> Any:
    """Draw from a guide and a model, for ArviZ to summarise, plot, compare and save.

    Example:
        $programs
        >>> x = torch.tensor([0.5, -1.0, 2.0])
        >>> data = to_inference_data(model, guide, x, num_samples=100)
        >>> data.log_likelihood["x"].dims
        ('chain', 'draw', 'data')
    """
    arviz = load_arviz("to_inference_data")
    check_draws(num_samples, chunk_size)
    with parameters_untouched():
        attrs = describe("pyro", objective=objective, refine=refine)
        if refine is not None:
            guide = refine.refine(model, guide)
        sampler = _Sampler.of(model, guide, args, kwargs)
        check_names(sampler.axes)
        sizes = chunk_sizes(num_samples, chunk_size, sampler.draw_size)
        draws = Draws.join([sampler.draw(size) for size in sizes]).without_masked_rows()
    draws.check(sampler.latents)
    return build(arviz, draws, attrs)


@dataclass(frozen=True)
class _Sampler:
    """Draws from guide and prior, with the predictions and densities that follow from them.

    Attributes:
        model: the model.
        guide: the guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        minibatch: the choice of rows in every plate.
        sites: the model's sites in a run of its own, by name, but no minibatches and factors.
        latents: the names of the model's latents that the guide draws.
        max_plate_nesting: the depth of all batch dims.
    """

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    minibatch: Trace
    sites: Messages
    latents: frozenset[str]
    max_plate_nesting: int

    @classmethod
    def of(
        cls, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Sampler:
        """Find out about sites and plates by a run of guide and model.

        Raises:
            ValueError: for a model without data, a latent of the guide's that the model does not
                have, or one that the model sums out.
        """
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        drawn = _only(is_latent, guide_trace)
        with poutine.replay(trace=_only(site_is_subsample, guide_trace)):
            model_trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(
                *args, **kwargs
            )
        drawn_or_observed = _only(lambda site: not site_is_subsample(site), model_trace).nodes
        sites = {n: site for n, site in drawn_or_observed.items() if not site_is_factor(site)}
        check_sites(
            sites,
            unknown=drawn.nodes.keys() - sites.keys() - set(_only(_is_auxiliary, drawn).nodes),
            summed_out=[
                name
                for name, site in sites.items()
                if name not in drawn and is_latent(site) and "enumerate" in site["infer"]
            ],
            data=[name for name, site in sites.items() if is_data(site)],
        )
        return cls(
            model,
            guide,
            args,
            kwargs,
            minibatch=_only(site_is_subsample, guide_trace, model_trace),
            sites=sites,
            latents=frozenset(drawn.nodes.keys() & sites.keys()),
            max_plate_nesting=max(
                _batch_dims(site) for site in (*drawn.nodes.values(), *drawn_or_observed.values())
            ),
        )

    @property
    def axes(self) -> dict[str, Axes]:
        """The axes of every site."""
        return {name: _axes(site) for name, site in self.sites.items()}

    @property
    def draw_size(self) -> int:
        """The numbers in the largest site of a draw."""
        return max(site["value"].numel() for site in self.sites.values())

    def draw(self, size: int) -> Draws:
        """Several draws in one run, in a plate to the left of all others."""
        dim = -self.max_plate_nesting - 1

        def run(program: Program) -> Messages:
            if size > 1:
                program = pyro.plate(PARTICLE_PLATE, size, dim=dim)(program)
            with poutine.replay(trace=self.minibatch):
                return poutine.trace(program).get_trace(*self.args, **self.kwargs).nodes

        try:
            drawn = Trace()
            for name, site in run(self.guide).items():
                if name in self.latents:
                    drawn.add_node(name, **site)
            replayed = poutine.replay(self.model, trace=drawn)
            given, predicted, prior = map(
                run, (replayed, _Predicted()(replayed), _Predicted()(self.model))
            )
            return self._arrange(size, given, predicted, prior)
        except Exception as error:
            if size > 1:
                error.add_note(
                    f"to_inference_data ran the programs with {size} draws at once, in a plate to "
                    "the left of theirs; chunk_size=1 runs them draw by draw"
                )
            raise

    def _arrange(self, size: int, given: Messages, predicted: Messages, prior: Messages) -> Draws:
        axes = self.axes
        data = [name for name, site in self.sites.items() if is_data(site)]
        deterministic = [name for name, site in self.sites.items() if _is_deterministic(site)]
        groups = sites_of_groups(self.sites, self.latents.union(deterministic), data)

        def values(run: Messages, group: str) -> Arrays:
            return {
                name: axes[name].arrange_draws(to_numpy(run[name]["value"]), size)
                for name in groups[group]
            }

        def per_row(of: Callable[[Message], Tensor]) -> Arrays:
            return {
                name: axes[name].rows.arrange_draws(to_numpy(of(given[name])), size)
                for name in data
            }

        return Draws(
            groups={
                "posterior": values(given, "posterior"),
                "posterior_predictive": values(predicted, "posterior_predictive"),
                "log_likelihood": per_row(_log_prob),
                "prior": values(prior, "prior"),
                "prior_predictive": values(prior, "prior_predictive"),
            },
            counted=per_row(_counted),
            observed={name: axes[name].arrange(_data(self.sites[name])) for name in data},
            axes=axes,
            indices={
                name: to_numpy(torch.as_tensor(site["value"]))
                for name, site in self.minibatch.nodes.items()
            },
            full_sizes={
                frame.name: full_size(frame)
                for site in self.sites.values()
                for frame in site["cond_indep_stack"]
            },
        )


class _Predicted(UnconditionMessenger):
    """Draws what is observed; deterministic values are no observations."""

    def _pyro_sample(self, msg: Message) -> None:
        if is_data(msg):
            super()._pyro_sample(msg)


def _only(wanted: Callable[[Message], bool], *traces: Trace) -> Trace:
    kept = Trace()
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and wanted(site) and name not in kept:
                kept.add_node(name, **site)
    return kept


def _is_auxiliary(site: Message) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _is_deterministic(site: Message) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _batch_dims(site: Message) -> int:
    declared = [-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized]
    return max([len(site["fn"].batch_shape), *declared])


def _axes(site: Message) -> Axes:
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    batch_shape, event_shape = site["fn"].batch_shape, site["fn"].event_shape
    if _is_deterministic(site):
        shape, event_dim = tuple(site["value"].shape), site["fn"].event_dim
        if event_dim == len(shape):  # as by default, within plates too
            event_dim = num_event_dims(shape, {frame.dim: frame.size for frame in frames})
        batch_shape, event_shape = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
    plates = {frame.dim: frame.name for frame in frames}
    return Axes.of(site["name"], batch_shape, event_shape, plates)


def _data(site: Message) -> Shaped[np.ndarray, ...]:
    fn = site["fn"]
    return to_numpy(site["value"].expand(fn.batch_shape + fn.event_shape))


def _log_prob(site: Message) -> Tensor:
    """The log density of a site without its scale, 0 where it is masked."""
    fn = site["fn"]
    log_prob = fn.log_prob(site["value"], *site["args"], **site["kwargs"]).expand(fn.batch_shape)
    return log_prob.masked_fill(~_counted(site), 0.0)


def _counted(site: Message) -> Tensor:
    """Whether a row of a site is not masked."""
    batch_shape, device = site["fn"].batch_shape, site["value"].device
    mask = joint_mask(site, device)
    return torch.as_tensor(True if mask is None else mask, device=device).expand(batch_shape)

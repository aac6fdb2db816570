# SPDX-License-Identifier: MIT
"""Runs of a model against a guide whose draws have flowed, and what they tell of the flow."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_infovae._core.evaluation import Flow
from pyro_infovae._core.programs import Program
from pyro_infovae._traces.flow import LastRun
from pyro_infovae._traces.recording import FLOWED, is_data

Pair = tuple[Trace, Trace]


class FlowRuns(Trace_ELBO):
    """Runs of a model and of a guide that flows, as one of Pyro's ELBOs makes them.

    Latents that the model enumerates, which the guide does not draw, are summed out.

    Args:
        elbo: how many particles there are, and how they are drawn.
        last: takes the model's run from the end of the flow, in the place of one of its own.
    """

    def __init__(self, elbo: Trace_ELBO, last: LastRun | None) -> None:
        super().__init__(
            num_particles=elbo.num_particles,
            max_plate_nesting=elbo.max_plate_nesting,
            vectorize_particles=elbo.vectorize_particles,
        )
        self.last = last

    def traces(self, model: Program, guide: Program, args: Any, kwargs: Any) -> list[Pair]:
        """The traces of model and guide, a pair per particle."""
        return list(self._get_traces(model, guide, args, kwargs))

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Pair:
        nesting = int(self.max_plate_nesting) + self.vectorize_particles
        enumerated = EnumMessenger(first_available_dim=-1 - nesting)(model)
        if self.last is None:
            return get_importance_trace("flat", nesting, enumerated, guide, args, kwargs)
        with self.last.of(enumerated):
            guide_trace = poutine.trace(guide, graph_type="flat").get_trace(*args, **kwargs)
        scored = self.last.trace
        if scored is None:
            replayed = poutine.replay(enumerated, trace=guide_trace)
            scored = poutine.trace(replayed, graph_type="flat").get_trace(*args, **kwargs)
        pair = scored, guide_trace
        if is_validation_enabled():
            check_model_guide_match(*pair, nesting)
        model_trace, guide_trace = (prune_subsample_sites(trace) for trace in pair)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        if is_validation_enabled():
            for trace in (model_trace, guide_trace):
                for site in trace.nodes.values():
                    if site["type"] == "sample":
                        check_site_shape(site, nesting)
        return model_trace, guide_trace


def finite_rows_of(traces: list[Pair]) -> dict[Flow, dict[str, Tensor]]:
    """By what has to be finite and by site, which rows are, particle after particle."""
    rows: dict[Flow, dict[str, list[Tensor]]] = {}

    def add(what: Flow, name: str, finite: Tensor) -> None:
        rows.setdefault(what, {}).setdefault(name, []).append(finite.reshape(-1))

    for model, guide in traces:
        for name, site in {**guide.nodes, **model.nodes}.items():
            if site["type"] != "sample":
                continue
            add("density", name, site["log_prob"].detach().isfinite())
            if is_data(site):
                add("data", name, site["value"].detach().isfinite())
        for name, site in guide.nodes.items():
            for what, finite in site.get("infer", {}).get(FLOWED, {}).items():
                add(what, name, finite)
    return {
        what: {name: torch.cat(parts) for name, parts in sites.items()}
        for what, sites in rows.items()
    }

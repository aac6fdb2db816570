# SPDX-License-Identifier: MIT
"""Importance weights of a guide's draws under a model, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_infovae._core.programs import Program
from pyro_infovae._traces.recording import (
    PARTICLE_PLATE,
    check_guide,
    full_size,
    is_data,
    is_latent,
    undecorated,
)

NUMBERS_PER_RUN = 2**23
"""What no site of a run should hold more of."""


def chunk_sizes(num_samples: int, chunk_size: int | None, draw_size: int) -> list[int]:
    """The draws of each run.

    Args:
        num_samples: the draws of all runs.
        chunk_size: draws per run, or None for so many that no site holds more than 2²³ numbers.
        draw_size: the numbers in the largest site of a draw.

    Example:
        >>> chunk_sizes(10, 4, 1)
        [4, 4, 2]
    """
    size = chunk_size or max(1, NUMBERS_PER_RUN // draw_size)
    return [min(size, num_samples - start) for start in range(0, num_samples, size)]


@dataclass(frozen=True)
class ImportanceSampler:
    r"""Draws from a guide, weighted under a model.

    .. math:: \log w_{s,i} = \log p(x_i, z_{s,i}) - \log q(z_{s,i})

    in nats for every row i: an index of the plates that all sites of model and guide are in.
    Plates within are summed over; masked sites count for nothing; scales are left out.

    Attributes:
        model: the model.
        guide: the guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        minibatch: the choice of rows in subsampled plates.
        rows: the plates that all sites are in, left to right.
        max_plate_nesting: the depth of all plates.
        draw_size: the numbers in the largest site of a draw.
    """

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    minibatch: Trace
    rows: tuple[CondIndepStackFrame, ...]
    max_plate_nesting: int
    draw_size: int

    @classmethod
    def of(
        cls, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ImportanceSampler:
        """Find out about the plates by a run of guide and model.

        Raises:
            ValueError: naming the site: for a latent that only one of model and guide draws, a
                point mass in the guide, or a site outside of a subsampled plate.
        """
        check_guide(guide)
        guide_trace, model_trace = _traces(model, guide, args, kwargs, minibatch=Trace())
        _check_latents(guide_trace, model_trace)
        sites = [*_sites(guide_trace), *_sites(model_trace)]
        frames = [{f for f in site["cond_indep_stack"] if f.vectorized} for site in sites]
        rows = frozenset.intersection(*map(frozenset, frames)) if frames else frozenset()
        _check_subsampling(sites, rows)
        return cls(
            model,
            guide,
            args,
            kwargs,
            minibatch=_minibatch(guide_trace, model_trace),
            rows=tuple(sorted(rows, key=lambda frame: frame.dim)),
            max_plate_nesting=max((-f.dim for stack in frames for f in stack), default=0),
            draw_size=max([1, *(site["value"].numel() for site in sites)]),
        )

    def log_weights(self, size: int) -> Float[Tensor, "size ..."]:
        """The log weights of as many draws in one run, in a plate to the left of all others."""
        dim = -self.max_plate_nesting - 1

        def particles(program: Program) -> Program:
            return program if size == 1 else pyro.plate(PARTICLE_PLATE, size, dim=dim)(program)

        try:
            guide, model = _traces(
                particles(self.model), particles(self.guide), self.args, self.kwargs, self.minibatch
            )
            kept = {dim: size, **{frame.dim: frame.size for frame in self.rows}}
            total = _sum_per_row(model, kept) - _sum_per_row(guide, kept)
        except Exception as error:
            if size > 1:
                error.add_note(
                    f"log_evidence ran the programs with {size} draws at once, in a plate to the "
                    "left of theirs; chunk_size=1 runs them draw by draw"
                )
            raise
        return total.reshape(tuple(kept.values()))


def _traces(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    minibatch: Trace,
) -> tuple[Trace, Trace]:
    """A run of the guide and one of the model with its draws."""
    guide_trace = poutine.trace(poutine.replay(guide, trace=minibatch)).get_trace(*args, **kwargs)
    with poutine.replay(trace=minibatch):
        replayed = poutine.replay(model, trace=guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)


def _sites(trace: Trace) -> Iterator[Message]:
    """The sample sites that have a density."""
    for site in trace.nodes.values():
        has_density = site["type"] == "sample" and not site_is_subsample(site)
        if has_density and not site["infer"].get("_deterministic"):
            yield site


def _minibatch(*traces: Trace) -> Trace:
    kept = Trace()
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site_is_subsample(site) and name not in kept:
                kept.add_node(name, **site)
    return kept


def _sum_per_row(trace: Trace, kept: dict[int, int]) -> Tensor:
    """The log density of a run without its scale, summed over all dims but those kept."""
    total: Any = 0.0
    for site in _sites(trace):
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
        summed = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
        total = total + (log_prob.sum(summed, keepdim=True) if summed else log_prob)
    return torch.as_tensor(total).expand([kept.get(dim, 1) for dim in range(min(kept), 0)])


def _check_latents(guide: Trace, model: Trace) -> None:
    drawn = {site["name"]: site for site in _sites(guide) if is_latent(site)}
    auxiliary = {name for name, site in drawn.items() if site["infer"].get("is_auxiliary")}
    latents = {site["name"] for site in _sites(model) if is_latent(site)}
    for name in sorted(latents - drawn.keys()):
        raise ValueError(
            f"log_evidence: site '{name}' is a latent of the model that the guide does not draw: "
            "draw it in the guide"
        )
    for name in sorted(drawn.keys() - latents - auxiliary):
        raise ValueError(
            f"log_evidence: the guide draws '{name}', which is no latent of the model: leave it "
            "out, or mark it infer={'is_auxiliary': True} if other latents are computed from it"
        )
    for site in _sites(guide):
        if is_data(site):
            raise ValueError(
                f"log_evidence: the guide observes '{site['name']}', which no weight can count: "
                f"hide it by poutine.block(guide, hide=['{site['name']}'])"
            )
    generated = {name.removesuffix("_unconstrained") for name in auxiliary}
    for name in sorted(latents - generated):
        fn = undecorated(drawn[name]["fn"])
        if isinstance(fn, Delta) and generated <= latents and not fn.log_density.any():
            raise ValueError(
                f"log_evidence: site '{name}' is a point mass in the guide, which has no density "
                "to weight by; give it one, as AutoNormal does"
            )


def _check_subsampling(sites: Iterable[Message], rows: frozenset[CondIndepStackFrame]) -> None:
    frames = {frame for site in sites for frame in site["cond_indep_stack"]}
    for frame in frames - rows:
        if full_size(frame) == frame.size:
            continue
        outside = [site["name"] for site in sites if frame not in site["cond_indep_stack"]]
        raise ValueError(
            f"log_evidence: plate '{frame.name}' is subsampled, but "
            + (f"site '{outside[0]}' is outside of it" if outside else "it is sequential")
            + ", so that its rows cannot be told apart: run the whole plate"
        )

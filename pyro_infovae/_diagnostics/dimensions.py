# SPDX-License-Identifier: MIT
"""Which dimensions of the code tell the data apart, and how far each is from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_infovae._core import dimensions
from pyro_infovae._core.dimensions import ActiveUnits, KLByDimension
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import flatten, normal_rows
from pyro_infovae._core.sites import Run, Site
from pyro_infovae._diagnostics.data_runs import (
    check_densities,
    run_over_data,
    source_of,
)
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae._traces.recording import undecorated
from pyro_infovae.groups import Group


@documented(dimensions.ACTIVE_UNITS)
def active_units(
    model: Program,
    guide: Program,
    *args: Any,
    threshold: float = 0.01,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> ActiveUnits[Tensor]:
    """Count the latent dimensions whose posterior mean depends on the data.

    Example:
        $programs
        >>> x = torch.tensor([-3.0, -1.0, 1.0, 3.0])
        >>> units = active_units(model, guide, x)
        >>> units.num_active, units.variance
        (1, tensor([1.6667]))
    """
    dimensions.check_active_units(threshold, num_samples)
    with parameters_untouched():
        runs = run_over_data("active_units", model, guide, args, kwargs, sites)
        return dimensions.ask_active_units(
            runs, _means, range(num_samples), num_samples=num_samples, threshold=threshold
        )


@documented(dimensions.KL_BY_DIMENSION)
def kl_by_dimension(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> KLByDimension[Tensor]:
    """Measure KL(q(z | x) ‖ p(z)) of each datum and each latent dimension.

    Example:
        $programs
        >>> x = torch.tensor([-1.0, 1.0, 2.0])
        >>> kl_by_dimension(model, guide, x).terms
        tensor([[0.2216],
                [0.2216],
                [0.5966]])
    """
    caller = "kl_by_dimension"
    dimensions.check_kl_by_dimension(num_samples)
    with parameters_untouched():
        runs = run_over_data(caller, model, guide, args, kwargs, sites)
        check_densities(caller, runs.first)
        return dimensions.ask_kl_by_dimension(
            runs,
            _terms_and_sum,
            range(num_samples),
            num_samples=num_samples,
            unsplit=_unsplit(runs.first),
        )


def _means(group: Group) -> Float[Tensor, "rows features"]:
    """What has the mean E[z | x] in every run, and varies as little as is known."""
    (run,) = group.runs
    drawn = group.posterior.latents
    return torch.cat([_location(name, run, drawn[name]) for name in group.names], -1)


def _location(
    name: str, run: Run, drawn: Float[Tensor, "rows features"]
) -> Float[Tensor, "rows features"]:
    auxiliary = run.guide.get(f"{name}_unconstrained")
    if auxiliary is not None and not torch.equal(auxiliary.value, run.guide[name].value):
        # The location is that of log z or the like.
        return drawn
    normal = normal_rows(name, run.guide, run)
    return drawn if normal is None else normal[0]


class _Divergence(NamedTuple):
    """The divergence of one latent: by dimension, nan where it does not split, and in all."""

    terms: Float[Tensor, "rows features"]
    sum: Float[Tensor, " rows"]


def _terms_and_sum(group: Group) -> Float[Tensor, "rows features_and_sum"]:
    (run,) = group.runs
    latents = [name for name, site in run.model.items() if site.is_latent]
    same_order = latents == [name for name in run.guide if name in latents]
    divergences = [
        (_closed_form(name, run) if same_order else None) or _sampled(name, run)
        for name in group.names
    ]
    total = torch.stack([divergence.sum for divergence in divergences]).sum(0)
    return torch.cat([*(divergence.terms for divergence in divergences), total[:, None]], -1)


def _closed_form(name: str, run: Run) -> _Divergence | None:
    posterior = normal_rows(name, run.guide, run)
    prior = normal_rows(name, run.model, run)
    if posterior is None or prior is None:
        return None
    ratio = (posterior[1] / prior[1]).square()
    shift = ((posterior[0] - prior[0]) / prior[1]).square()
    terms = 0.5 * (ratio + shift - 1 - ratio.log())
    return _Divergence(terms, terms.sum(-1))


def _sampled(name: str, run: Run) -> _Divergence:
    source, drawn, prior = source_of(name, run), run.guide[name], run.model[name]
    shape = drawn.value.shape[: drawn.value.dim() - drawn.event_dim]
    # The density of a point mass that is drawn elsewhere is the Jacobian of the map to it.
    jacobian = 0.0 if source is drawn else _log_prob(drawn, shape)
    total = _log_prob(source, shape) + jacobian - _log_prob(prior, shape)
    if _why_unsplit(name, run):
        terms = torch.full_like(flatten(drawn.value, drawn.event_dim, shape), math.nan)
    else:
        terms = _log_probs(source, shape) + jacobian - _log_probs(prior, shape)
    return _Divergence(terms, total.squeeze(-1))


def _log_prob(site: Site, shape: torch.Size) -> Float[Tensor, "rows 1"]:
    return flatten(site.fn.log_prob(site.value), 0, shape)


def _log_probs(site: Site, shape: torch.Size) -> Float[Tensor, "rows features"]:
    """The log density of each dimension."""
    return flatten(undecorated(site.fn).log_prob(site.value), site.event_dim, shape)


def _unsplit(group: Group) -> dict[str, str]:
    (run,) = group.runs
    reasons = {name: _why_unsplit(name, run) for name in group.names}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_unsplit(name: str, run: Run) -> str | None:
    """Why the log density of a latent is no sum over its dimensions, or None if it is."""
    source, drawn = source_of(name, run), run.guide[name]
    for site in (source, run.model[name]):
        fn = undecorated(site.fn)
        if fn.event_shape:
            return f"the density of {type(fn).__name__} does not split by dimension"
    if source is not drawn and drawn.fn.event_shape.numel() > 1 and drawn.fn.log_density.any():
        return "the guide draws it in another space, whose volume does not split by dimension"
    return None

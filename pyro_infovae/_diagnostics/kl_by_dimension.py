# SPDX-License-Identifier: MIT
"""How far the code of each datum is from the prior, dimension by dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pyro.distributions import Delta
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_infovae._diagnostics.data_runs import DataRuns, check_all_drawn
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae._traces.runs import Program, Run
from pyro_infovae.groups import Group
from pyro_infovae.rows import flatten, normal_rows
from pyro_infovae.sites import is_latent, undecorated

_ASKER = "kl_by_dimension"


@dataclass(frozen=True, eq=False)
class KLByDimension:
    """KL(q(z | x) ‖ p(z)) of each datum, and its terms; all in nats.

    Attributes:
        terms: the term of each datum and dimension; nan for the dimensions of a latent whose
            density does not split.
        per_datum: KL of each datum, all latents together.
        standard_error: that of ``per_datum``, over the draws of z; 0 where nothing was drawn.
        datum: which datum each row is, in increasing order; masked ones are left out.
        dimensions: the name of each dimension: its site's, and a number where there are several.
        unsplit: why the density does not split, by site name.
    """

    terms: Float[Tensor, "data dims"]
    per_datum: Float[Tensor, " data"]
    standard_error: Float[Tensor, " data"]
    datum: Int[Tensor, " data"]
    dimensions: tuple[str, ...]
    unsplit: dict[str, str]

    @property
    def per_dimension(self) -> Float[Tensor, " dims"]:
        """The average over the data of each dimension's term."""
        return self.terms.mean(0)

    @property
    def mean(self) -> float:
        """The average over the data."""
        return float(self.per_datum.mean())

    @property
    def mean_error(self) -> float:
        """The standard error of the average, over the draws of z."""
        return float(self.standard_error.norm() / len(self.standard_error))


def kl_by_dimension(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> KLByDimension:
    r"""Measure KL(q(z | x) ‖ p(z)) of each datum and each latent dimension.

    .. math::
        \mathrm{KL}(q(z \mid x_i) \| p(z)) = \sum_u E_q \left[
        \log \frac{q(z_u \mid x_i)}{p(z_u)} \right]

    A dimension whose term is 0 for all data has collapsed to the prior. The terms are in closed
    form where both conditionals are diagonal normals, and guide and model draw the latents in the
    same order; elsewhere they are averages of the log ratio over draws. A density that does not
    split by dimension, such as that of a multivariate normal, has a term per datum only. Latents
    that depend on others count given these. A plate with a ``subsample_size`` is run over all its
    minibatches.

    Args:
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        num_samples: runs to average over where not all is known in closed form, at least 2.
        sites: the latents, by name, in one stack of plates. By default every reparameterised
            latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The terms, and their sum for each datum.

    Raises:
        ValueError: for a point mass in the guide, a latent of the model that the guide does not
            draw, fewer than 2 data, codes that are not finite, or more than one subsampled plate.

    References:
        Lucas, Tucker, Grosse, Norouzi, *Don't Blame the ELBO! A Linear VAE Perspective on
        Posterior Collapse*, arXiv 1911.02469.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = torch.tensor([-1.0, 1.0, 2.0])
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x, 0 * x], -1)
        ...         pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        >>> kl_by_dimension(model, guide, x).terms
        tensor([[0.5000, 0.0000],
                [0.5000, 0.0000],
                [2.0000, 0.0000]])
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    with parameters_untouched():
        runs = DataRuns.of(_ASKER, model, guide, args, kwargs, sites)
        first = runs.draw()
        runs.check_finite(first.posterior, "guide draws")
        check_all_drawn(_ASKER, first.groups[0])
        _check_densities(first.groups[0])
        draws = runs.repeat(_terms_and_sum, num_samples)
    return KLByDimension(
        terms=draws.mean(0)[:, :-1],
        per_datum=draws.mean(0)[:, -1],
        standard_error=draws[:, :, -1].std(0) / len(draws) ** 0.5,
        datum=runs.datum,
        dimensions=runs.features,
        unsplit=_unsplit(first.groups[0]),
    )


class _Divergence(NamedTuple):
    """The divergence of one latent: by dimension, nan where it does not split, and in all."""

    terms: Float[Tensor, "rows features"]
    sum: Float[Tensor, " rows"]


def _terms_and_sum(group: Group) -> Float[Tensor, "rows features_and_sum"]:
    (run,) = group.runs
    latents = [name for name, msg in run.model.items() if is_latent(msg)]
    same_order = latents == [name for name in run.guide if name in latents]
    divergences = [
        (_closed_form(name, run) if same_order else None) or _sampled(name, run)
        for name in group.names
    ]
    total = torch.stack([divergence.sum for divergence in divergences]).sum(0)
    return torch.cat([*(divergence.terms for divergence in divergences), total[:, None]], -1)


def _closed_form(name: str, run: Run) -> _Divergence | None:
    posterior = normal_rows(name, run.guide, run.guide)
    prior = normal_rows(name, run.model, run.guide)
    if posterior is None or prior is None:
        return None
    ratio = (posterior[1] / prior[1]).square()
    shift = ((posterior[0] - prior[0]) / prior[1]).square()
    terms = 0.5 * (ratio + shift - 1 - ratio.log())
    return _Divergence(terms, terms.sum(-1))


def _sampled(name: str, run: Run) -> _Divergence:
    source, drawn, prior = _source(name, run), run.guide[name], run.model[name]
    value = drawn["value"]
    shape = value.shape[: value.dim() - drawn["fn"].event_dim]
    # The density of a point mass that is drawn elsewhere is the Jacobian of the map to it.
    jacobian = 0.0 if source is drawn else _log_prob(drawn, shape)
    total = _log_prob(source, shape) + jacobian - _log_prob(prior, shape)
    if _why_unsplit(name, run):
        terms = torch.full_like(flatten(value, drawn["fn"].event_dim, shape), math.nan)
    else:
        terms = _log_probs(source, shape) + jacobian - _log_probs(prior, shape)
    return _Divergence(terms, total.squeeze(-1))


def _source(name: str, run: Run) -> Message:
    """The site that a latent's density in the guide sits in."""
    return run.guide.get(f"{name}_unconstrained", run.guide[name])


def _log_prob(msg: Message, shape: torch.Size) -> Float[Tensor, "rows 1"]:
    return flatten(msg["fn"].log_prob(msg["value"]), 0, shape)


def _log_probs(msg: Message, shape: torch.Size) -> Float[Tensor, "rows features"]:
    """The log density of each dimension."""
    return flatten(undecorated(msg["fn"]).log_prob(msg["value"]), msg["fn"].event_dim, shape)


def _unsplit(group: Group) -> dict[str, str]:
    (run,) = group.runs
    reasons = {name: _why_unsplit(name, run) for name in group.names}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_unsplit(name: str, run: Run) -> str | None:
    """Why the log density of a latent is no sum over its dimensions, or None if it is."""
    source, drawn = _source(name, run), run.guide[name]
    for msg in (source, run.model[name]):
        fn = undecorated(msg["fn"])
        if fn.event_shape:
            return f"the density of {type(fn).__name__} does not split by dimension"
    if (
        source is not drawn
        and drawn["fn"].event_shape.numel() > 1
        and drawn["fn"].log_density.any()
    ):
        return "the guide draws it in another space, whose volume does not split by dimension"
    return None


def _check_densities(group: Group) -> None:
    (run,) = group.runs
    for name in group.names:
        if isinstance(undecorated(_source(name, run)["fn"]), Delta):
            raise ValueError(
                f"{_ASKER}: the guide draws '{name}' as a point mass, which has no density: "
                "choose others by sites"
            )

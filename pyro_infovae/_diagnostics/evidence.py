# SPDX-License-Identifier: MIT
r"""How probable the data are under a model: importance-weighted log p(x), row by row."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_infovae._traces.draw_chunks import chunk_sizes
from pyro_infovae._traces.importance_weights import ImportanceSampler
from pyro_infovae._traces.runs import Program
from pyro_infovae.trace_hamiltonian_elbo import TraceHamiltonian_ELBO

__all__ = ["Evidence", "log_evidence"]

RELIABLE_PARETO_K = 0.7


@dataclass(frozen=True, eq=False)
class Evidence:
    r"""An importance-sampling estimate of log p(x), in nats, and how far to believe it.

    Attributes:
        log_weights: :math:`\log w_{s,i} = \log p(x_i, z_{s,i}) - \log q(z_{s,i})`, of shape
            (samples, \*rows).

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry, *Pareto Smoothed Importance Sampling*,
        arXiv 1507.02646.
    """

    log_weights: Float[Tensor, "samples ..."]

    @cached_property
    def log_evidence(self) -> Float[Tensor, "*rows"]:
        r""":math:`\log \frac{1}{S} \sum_s w_{s,i}`, in nats."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))

    @property
    def total(self) -> Float[Tensor, ""]:
        """The log evidence of all rows together, in nats."""
        return self.log_evidence.sum()

    @cached_property
    def effective_sample_size(self) -> Float[Tensor, "*rows"]:
        r""":math:`(\sum_s w_{s,i})^2 / \sum_s w_{s,i}^2`, between 1 and the number of samples."""
        return (2 * self.log_weights.logsumexp(0) - (2 * self.log_weights).logsumexp(0)).exp()

    @cached_property
    def standard_error(self) -> Float[Tensor, "*rows"]:
        r"""That of the log evidence, :math:`\mathrm{sd}(w_i) / (\sqrt{S} \, \bar w_i)`, in nats.

        To be believed only where :attr:`pareto_k` is below 0.5: beyond, w has no variance.
        """
        num_samples = len(self.log_weights)
        squared_variation = (num_samples / self.effective_sample_size - 1).clamp(min=0)
        return (squared_variation / (num_samples - 1)).sqrt()

    @cached_property
    def pareto_k(self) -> Float[Tensor, "*rows"]:
        """The shape of the tail of the weights, above 0.7 where the estimate is not to be believed.

        It is infinite where there are too few weights to fit a tail, and 0 where there is none, for
        the largest weights agree to a thousandth of a nat.
        """
        rows = self.log_weights.reshape(len(self.log_weights), -1).double().cpu()
        shapes = [_pareto_k(row) for row in rows.T]
        return self.log_weights.new_tensor(shapes).reshape(self.log_weights.shape[1:])


def log_evidence(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    elbo: TraceHamiltonian_ELBO | None = None,
    **kwargs: Any,
) -> Evidence:
    r"""Estimate log p(x) by importance sampling from a guide.

    .. math::
        \log p(x_i) \approx \log \frac{1}{S} \sum_{s=1}^S
        \frac{p(x_i, z_{s,i})}{q(z_{s,i} \mid x_i)}, \qquad z_{s,i} \sim q

    A row is an index of the plates that *all* sites of model and guide are in; plates within are
    summed over. Where a latent is in no plate, or the guide's latents are not independent, rows
    cannot be told apart: there is one weight for the whole data set, and results have shape ().

    The estimate of each row is that of the row by itself: the subsampling factor N / B, as any
    ``poutine.scale``, is left out. A minibatch is drawn once; ``pyro.plate(..., subsample=rows)``
    determines which. Masked rows have log evidence 0. In expectation it is a lower bound, which
    rises with the number of samples.

    Args:
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        num_samples: the number S of draws per row.
        chunk_size: draws per run, in a plate to the left of all others; by default so many that
            no site holds more than 2²³ numbers. 1 runs the programs as they are, draw by draw,
            which is for programs that cannot be vectorised.
        elbo: draws from ``elbo.refine(model, guide)`` in the guide's place. Its bound is tighter;
            whether its weights are better too, ``effective_sample_size`` tells.
        **kwargs: keyword arguments of both.

    Returns:
        The estimate with its reliability; a warning says so where it is not to be believed.

    Raises:
        ValueError: naming the site: for a latent that only one of model and guide draws, a point
            mass in the guide, or a site outside of a subsampled plate; for a number out of range.

    References:
        Burda, Grosse, Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = torch.tensor([0.5, -1.0, 2.0])
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> log_evidence(model, guide, x, num_samples=100).log_evidence
        tensor([-1.3280, -1.5155, -2.2655])
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")
    if elbo is not None:
        guide = elbo.refine(model, guide)
    store = pyro.get_param_store()
    with torch.no_grad(), store.scope(store.get_state()):
        sampler = ImportanceSampler.of(model, guide, args, kwargs)
        sizes = chunk_sizes(num_samples, chunk_size, sampler.draw_size)
        evidence = Evidence(torch.cat([sampler.log_weights(size) for size in sizes]))
    _warn_if_unreliable(evidence)
    return evidence


def _pareto_k(log_weights: Float[Tensor, " samples"]) -> float:
    """The shape of a generalised Pareto distribution fitted to the tail of the weights."""
    peak = float(log_weights.max())
    if not math.isfinite(peak):
        return math.nan if math.isnan(peak) else math.inf
    log_weights = (log_weights - peak).sort().values
    tail = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    cutoff = log_weights[-tail - 1].clamp(min=math.log(sys.float_info.min))
    if cutoff > -1e-3:
        return 0.0
    excess = log_weights[log_weights > cutoff].exp() - cutoff.exp()
    if len(excess) <= 4:
        return math.inf
    shape, _ = fit_generalized_pareto(excess)
    return float(shape)


def _warn_if_unreliable(evidence: Evidence) -> None:
    pareto_k = evidence.pareto_k.reshape(-1)
    unreliable = pareto_k[pareto_k > RELIABLE_PARETO_K]
    if pareto_k.isnan().any():
        warnings.warn(
            f"log_evidence: nan in {int(pareto_k.isnan().sum())} of {len(pareto_k)} rows: the "
            "model's density is nan, or the elbo's flow diverged; lower its step_size",
            stacklevel=3,
        )
    if len(unreliable) > 0:
        warnings.warn(
            f"log_evidence: Pareto k > {RELIABLE_PARETO_K} in {len(unreliable)} of {len(pareto_k)} "
            f"rows, up to {float(unreliable.max()):.2f}: do not believe their estimates; draw more "
            "samples, or from a guide nearer to the posterior",
            stacklevel=3,
        )

# SPDX-License-Identifier: MIT
"""A weight of the MMD to start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_infovae._core.pair_statistics import mean_of_pairs, standard_error_of_pairs
from pyro_infovae._diagnostics.data_runs import DataRuns
from pyro_infovae._diagnostics.mmd_test import check_max_data, contrasts_of_codes
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae._traces.runs import Program
from pyro_infovae.groups import Group
from pyro_infovae.kernels import Kernel
from pyro_infovae.sites import is_data

_ASKER = "suggest_lambd"


@dataclass(frozen=True)
class SuggestedLambd:
    """A weight of the MMD, and the terms that it balances.

    Attributes:
        lambd: the weight λ.
        standard_error: its standard error, that of MMD² carried over.
        log_likelihood: E log p(x | z) in nats, summed over the data set.
        mmd_squared: the unbiased estimate of MMD²(q(z), p(z)).
        num_data: N, which MMD² is multiplied by in the objective.
    """

    lambd: float
    standard_error: float
    log_likelihood: float
    mmd_squared: float
    num_data: int


def suggest_lambd(
    model: Program,
    guide: Program,
    *args: Any,
    share: float = 0.1,
    alpha: float = 0.0,
    kernel: Kernel | None = None,
    max_data: int = 2000,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> SuggestedLambd:
    r"""Suggest the weight λ at which the MMD has a given share of the reconstruction term.

    .. math::
        N (\alpha + \lambda - 1) \, \mathrm{MMD}^2 = s \, |E_q \log p(x \mid z)|
        \quad \Rightarrow \quad
        \lambda = 1 - \alpha + s \, \frac{|E_q \log p(x \mid z)|}{N \, \mathrm{MMD}^2}

    Both sides are in nats, summed over the data set, as in the loss of
    :class:`~pyro_infovae.TraceMMD_ELBO`. It is a seed to search around, for the model and guide
    as they are now: where q(z) is near p(z) already, λ is large and uncertain.

    Args:
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        share: the share s of the reconstruction term.
        alpha: the α of the objective.
        kernel: the kernel of the objective; ``RBF()`` by default.
        max_data: where there are more data, MMD² is estimated on a random choice of so many.
        sites: the latents to penalise, by name, in one stack of plates. By default every
            reparameterised latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The weight and the terms that it balances.

    Raises:
        ValueError: for a number out of range, an estimate of MMD² that is not positive, a model
            that observes nothing, or what :func:`~pyro_infovae.diagnostics.mmd_test` refuses.

    References:
        For s = 1 it is the ratio ``logP_mmd_ratio`` of AutoEncoderToolkit.jl.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = 3.0 * torch.randn(500)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x, 0.1))  # Var(z) = 9
        >>> suggested = suggest_lambd(model, guide, x, share=0.1)
        >>> mmd_term = 500 * (suggested.lambd - 1) * suggested.mmd_squared
        >>> round(mmd_term / abs(suggested.log_likelihood), 4)
        0.1
    """
    if not share > 0:
        raise ValueError(f"Expected share > 0; got {share}")
    if not alpha <= 1:
        raise ValueError(f"Expected alpha <= 1; got {alpha}")
    check_max_data(max_data)
    with parameters_untouched():
        run = DataRuns.of(_ASKER, model, guide, args, kwargs, sites).draw()
        contrasts = contrasts_of_codes(run, kernel, max_data)
        log_likelihood = float(torch.stack([_log_likelihood(group) for group in run.groups]).mean())
    mmd_squared = mean_of_pairs(contrasts)
    if not mmd_squared > 0:
        raise ValueError(
            f"{_ASKER}: Expected a positive MMD²; got the estimate {mmd_squared:.2g}: q(z) cannot "
            "be told from p(z), so that no weight follows; use more data, or keep the weight"
        )
    num_data = run.groups[0].posterior.total
    weight = share * abs(log_likelihood) / (num_data * mmd_squared)
    return SuggestedLambd(
        lambd=1 - alpha + weight,
        standard_error=weight * standard_error_of_pairs(contrasts) / mmd_squared,
        log_likelihood=log_likelihood,
        mmd_squared=mmd_squared,
        num_data=num_data,
    )


def _log_likelihood(group: Group) -> Float[Tensor, ""]:
    """The log density of the data as the loss has it: scaled to the full data, masks heeded."""
    (run,) = group.runs
    observed = [msg for msg in run.model.values() if is_data(msg)]
    if not observed:
        raise ValueError(
            f"{_ASKER}: the model observes nothing, so that there is no reconstruction term to "
            "balance: observe the data by obs="
        )
    terms = [
        scale_and_mask(msg["fn"].log_prob(msg["value"]), msg["scale"], msg["mask"]).sum()
        for msg in observed
    ]
    return torch.stack(terms).sum()

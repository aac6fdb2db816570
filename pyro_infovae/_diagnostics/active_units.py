# SPDX-License-Identifier: MIT
"""Which dimensions of the code tell the data apart at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_infovae._core.pair_statistics import mean_of_pairs, standard_error_of_pairs
from pyro_infovae._diagnostics.data_runs import DataRuns
from pyro_infovae._traces.fresh_draws import parameters_untouched
from pyro_infovae._traces.runs import Program, Run
from pyro_infovae.groups import Group
from pyro_infovae.rows import normal_rows

_ASKER = "active_units"


@dataclass(frozen=True, eq=False)
class ActiveUnits:
    """How much the posterior mean of each latent dimension varies over the data.

    Attributes:
        variance: the variance over the data of E[z | x], in units of z².
        standard_error: its standard error over the draws of z; 0 where nothing was drawn.
        threshold: the variance above which a dimension is active.
        dimensions: the name of each dimension: its site's, and a number where there are several.
        num_data: the data that count.
    """

    variance: Float[Tensor, " dims"]
    standard_error: Float[Tensor, " dims"]
    threshold: float
    dimensions: tuple[str, ...]
    num_data: int

    @property
    def active(self) -> Bool[Tensor, " dims"]:
        """Whether the variance is above the threshold."""
        return self.variance > self.threshold

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return int(self.active.sum())


def active_units(
    model: Program,
    guide: Program,
    *args: Any,
    threshold: float = 0.01,
    num_samples: int = 10,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> ActiveUnits:
    r"""Count the latent dimensions whose posterior mean depends on the data.

    .. math:: A_u = \mathrm{Var}_x \left( E_{q(z \mid x)}[z_u] \right)

    Where the guide's conditional is normal, or a point mass, the mean is its parameter. Otherwise
    it is estimated by draws, and :math:`A_u` by their covariance over the data, averaged over all
    pairs of independent runs of the guide: it is unbiased, and may be slightly negative. A plate
    with a ``subsample_size`` is run over all its minibatches.

    Args:
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        threshold: the variance above which a dimension is active, in units of z².
        num_samples: runs of the guide where the mean is not its parameter, at least 4.
        sites: the latents, by name, in one stack of plates. By default every reparameterised
            latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The variances, and which of the dimensions are active.

    Raises:
        ValueError: for a number out of range, fewer than 2 data, codes that are not finite, or
            more than one subsampled plate.

    References:
        Burda, Grosse, Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = torch.tensor([-3.0, -1.0, 1.0, 3.0])
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x / 2, 0 * x], -1)  # the second dimension ignores x
        ...         pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        >>> units = active_units(model, guide, x)
        >>> units.num_active, units.variance
        (1, tensor([1.6667, 0.0000]))
    """
    if not threshold >= 0:
        raise ValueError(f"Expected threshold >= 0; got {threshold}")
    if num_samples < 4:
        raise ValueError(f"Expected num_samples >= 4; got {num_samples}")
    with parameters_untouched():
        runs = DataRuns.of(_ASKER, model, guide, args, kwargs, sites)
        means = runs.repeat(_means, num_samples)
        runs.check_finite(means, "guide gives")
    variance, standard_error = _variance_of_expectation(means)
    return ActiveUnits(variance, standard_error, threshold, runs.features, num_data=len(runs.kept))


def _means(group: Group) -> Float[Tensor, "rows features"]:
    """What has the mean E[z | x] in every run, and varies as little as is known."""
    (run,) = group.runs
    drawn = group.posterior.latents
    return torch.cat([_location(name, run, drawn[name]) for name in group.names], -1)


def _location(
    name: str, run: Run, drawn: Float[Tensor, "rows features"]
) -> Float[Tensor, "rows features"]:
    auxiliary = run.guide.get(f"{name}_unconstrained")
    if auxiliary is not None and not torch.equal(auxiliary["value"], run.guide[name]["value"]):
        # The location is that of log z or the like.
        return drawn
    normal = normal_rows(name, run.guide, run.guide)
    return drawn if normal is None else normal[0]


def _variance_of_expectation(
    draws: Float[Tensor, "runs data dims"],
) -> tuple[Float[Tensor, " dims"], Float[Tensor, " dims"]]:
    """The covariance over the data of different runs, and its standard error."""
    centred = draws - draws.mean(1, keepdim=True)
    covariance = torch.einsum("sid,tid->dst", centred, centred) / (draws.shape[1] - 1)
    if torch.equal(draws[0], draws[1]):
        return covariance[:, 0, 1], torch.zeros_like(covariance[:, 0, 1])
    pairs = covariance.double().cpu().numpy()
    for of_dimension in pairs:
        np.fill_diagonal(of_dimension, 0.0)
    return (
        draws.new_tensor([mean_of_pairs(of_dimension) for of_dimension in pairs]),
        draws.new_tensor([standard_error_of_pairs(of_dimension) for of_dimension in pairs]),
    )

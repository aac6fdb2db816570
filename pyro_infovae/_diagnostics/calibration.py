# SPDX-License-Identifier: MIT
"""Is the guide's posterior as wide as it should be, and in the right place?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from pyro import poutine
from torch import Tensor

from pyro_infovae._core.progress import with_progress
from pyro_infovae._core.rank_uniformity import chi_square_p_value
from pyro_infovae._diagnostics.data_runs import check_finite, feature_names
from pyro_infovae._diagnostics.simulation import DataArguments, Simulation, simulate
from pyro_infovae._traces.fresh_draws import FreshDraws, parameters_untouched
from pyro_infovae._traces.runs import Program
from pyro_infovae.rows import rows_of

_ASKER = "simulation_based_calibration"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of latents among the guide's draws, uniform for an exact posterior.

    For a plot of dimension ``d`` with simultaneous 94% bands in ArviZ::

        uniform = scipy.stats.randint(0, calibration.num_samples + 1)
        arviz.plot_ecdf(
            calibration.ranks[:, d].numpy(),
            eval_points=numpy.arange(calibration.num_samples + 1),
            cdf=uniform.cdf,
            rvs=uniform.rvs,
            confidence_bands=True,
        )

    A curve below the diagonal on the left and above it on the right is that of a guide that is too
    wide, the other way round of one that is too narrow.

    Attributes:
        ranks: how many of the guide's draws are below the latent that the data were drawn from;
            a row per datum and simulation.
        num_samples: the draws, which is the largest rank.
        dimensions: the name of each dimension: its site's, and a number where there are several.
    """

    ranks: Int[Tensor, "ranks dims"]
    num_samples: int
    dimensions: tuple[str, ...]

    @property
    def p_values(self) -> tuple[float, ...]:
        """For each dimension, how often ranks as uneven are met where the guide is exact.

        By a chi-square test that takes the rows to be independent. Latents outside their plates
        make them dependent, and the p-values too small.
        """
        columns = self.ranks.cpu().numpy().T
        return tuple(chi_square_p_value(ranks, self.num_samples + 1) for ranks in columns)


def simulation_based_calibration(
    model: Program,
    guide: Program,
    *args: Any,
    num_simulations: int = 10,
    num_samples: int = 99,
    data_args: DataArguments | None = None,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> Calibration:
    r"""Rank latents among the guide's draws, on data that the model draws from them.

    .. math::
        (z, x) \sim p(z) \, p(x \mid z), \qquad z_1, \dots, z_L \sim q(z \mid x), \qquad
        r_u = \#\{l : z_{l, u} < z_u\}

    Where q(z | x) is the posterior, every rank 0, ..., L is equally probable. A guide that is too
    narrow has too many of the lowest and the highest, one that is too wide too many in the middle,
    one that is off to a side too many of the other. The data are the model's, not the user's: it
    is the guide that is tested. A guide that ignores the data and draws from the prior passes: see
    :func:`~pyro_infovae.diagnostics.active_units`.

    Args:
        model: the model. What it observes is drawn instead, in plates of the same sizes.
        guide: an amortised guide, a function of the data.
        *args: positional arguments of both.
        num_simulations: data sets to draw; each datum of each has ranks.
        num_samples: the draws L from the guide for each datum.
        data_args: a function of the data drawn, a dictionary by site name, to the arguments
            ``(args, kwargs)`` of model and guide. By default each tensor among the arguments that
            is what a site observes, or equals it, is replaced; of a plate with a
            ``subsample_size``, the rows of the minibatch.
        sites: the latents, by name, in one stack of plates. By default every reparameterised
            latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The ranks, and their p-values. A progress bar is shown where tqdm is installed.

    Raises:
        ValueError: for a number out of range, a model that observes nothing or what is none of the
            arguments, latents that cannot be selected, or codes that are not finite.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman, *Validating Bayesian Inference Algorithms with
        Simulation-Based Calibration*, arXiv 1804.06788.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> x = torch.zeros(100)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.3))  # the posterior's scale is 0.7
        >>> calibration = simulation_based_calibration(model, guide, x)
        >>> calibration.ranks.shape
        torch.Size([1000, 1])
        >>> calibration.p_values[0] < 1e-6
        True
    """
    if num_simulations < 1 or num_samples < 2:
        raise ValueError(
            f"Expected num_simulations >= 1 and num_samples >= 2; got "
            f"num_simulations={num_simulations}, num_samples={num_samples}"
        )
    simulations = with_progress(range(num_simulations), total=num_simulations, label="calibration")
    with parameters_untouched():
        ranked = [
            _ranks(
                simulate(_ASKER, model, args, kwargs, data_args), model, guide, sites, num_samples
            )
            for _ in simulations
        ]
    ranks, dimensions = zip(*ranked, strict=True)
    return Calibration(torch.cat(ranks), num_samples, dimensions[0])


def _ranks(
    simulation: Simulation,
    model: Program,
    guide: Program,
    sites: Iterable[str] | None,
    num_samples: int,
) -> tuple[Int[Tensor, "data dims"], tuple[str, ...]]:
    """The ranks of one simulation's latents that are not masked, and their dimensions' names."""
    same_minibatch = poutine.replay(guide, trace=simulation.minibatch)
    draws = FreshDraws(_ASKER, model, same_minibatch, *simulation.arguments, sites)
    group = draws.draw()
    (run,) = group.runs
    weights = group.posterior.weights
    counted = slice(None) if weights is None else weights > 0
    dimensions = feature_names(group.posterior)
    latents = rows_of(group.names, simulation.messages, run.guide).values[counted]
    check_finite(latents, dimensions, asker=_ASKER, source="model draws")
    ranks = torch.zeros_like(latents, dtype=torch.long)
    for _ in range(num_samples):
        codes = draws.draw().posterior.values[counted]
        check_finite(codes, dimensions, asker=_ASKER, source="guide draws")
        ranks += codes < latents
    return ranks, dimensions

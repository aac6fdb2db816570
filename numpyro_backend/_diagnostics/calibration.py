# SPDX-License-Identifier: MIT
"""Is the guide's posterior as wide as it should be, and in the right place?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._diagnostics.data_runs import check_finite, feature_names
from numpyro_backend._diagnostics.simulation import DataArguments, Simulator
from numpyro_backend._traces.fresh_draws import FreshDraws, set_up
from numpyro_backend._traces.runs import Program
from numpyro_backend.rows import Rows, rows_of
from pyro_infovae._core.progress import with_progress
from pyro_infovae._core.rank_uniformity import chi_square_p_value

_ASKER = "simulation_based_calibration"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of latents among the guide's draws, uniform for an exact posterior.

    For a plot of dimension ``d`` with simultaneous 94% bands in ArviZ::

        uniform = scipy.stats.randint(0, calibration.num_samples + 1)
        arviz.plot_ecdf(
            calibration.ranks[:, d],
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

    ranks: Int[np.ndarray, "ranks dims"]
    num_samples: int
    dimensions: tuple[str, ...]

    @property
    def p_values(self) -> tuple[float, ...]:
        """For each dimension, how often ranks as uneven are met where the guide is exact.

        By a chi-square test that takes the rows to be independent. Latents outside their plates
        make them dependent, and the p-values too small.
        """
        return tuple(chi_square_p_value(ranks, self.num_samples + 1) for ranks in self.ranks.T)


def simulation_based_calibration(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
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
    :func:`~numpyro_backend.diagnostics.active_units`.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model. What it observes is drawn instead, in plates of the same sizes.
        guide: an amortised guide, a function of the data.
        *args: positional arguments of both.
        num_simulations: data sets to draw; each datum of each has ranks.
        num_samples: the draws L from the guide for each datum.
        data_args: a function of the data drawn, a dictionary by site name, to the arguments
            ``(args, kwargs)`` of model and guide; it is run under :func:`jax.jit`. By default each
            array in the arguments that equals what a site observes is replaced; of a plate with a
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
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> x = jnp.zeros(100)
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x / 2, 0.3))  # the posterior's scale is 0.7
        >>> calibration = simulation_based_calibration(jax.random.key(0), {}, model, guide, x)
        >>> calibration.ranks.shape
        (1000, 1)
        >>> calibration.p_values[0] < 1e-6
        True
    """
    if num_simulations < 1 or num_samples < 2:
        raise ValueError(
            f"Expected num_simulations >= 1 and num_samples >= 2; got "
            f"num_simulations={num_simulations}, num_samples={num_samples}"
        )
    first_key, runs_key = jax.random.split(rng_key)
    set_up(first_key, guide, args, kwargs)
    simulator = Simulator.of(_ASKER, first_key, params, model, args, kwargs, data_args)
    rank = shared_jit(partial(_ranks, simulator, guide, sites, num_samples))
    keys = jax.random.split(runs_key, num_simulations)
    simulations = with_progress(keys, total=num_simulations, label="calibration")
    ranked = [_counted(rank(key, params)) for key in simulations]
    ranks, dimensions = zip(*ranked, strict=True)
    return Calibration(np.concatenate(ranks), num_samples, dimensions[0])


class _Ranked(NamedTuple):
    """The latents of a simulation, their ranks, and whether all of the guide's draws are finite."""

    latents: Rows
    ranks: Int[Array, "rows dims"]
    is_finite: Bool[Array, "rows dims"]


def _ranks(
    simulator: Simulator,
    guide: Program,
    sites: Iterable[str] | None,
    num_samples: int,
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
) -> _Ranked:
    simulation_key, guide_key = jax.random.split(rng_key)
    simulation = simulator.draw(simulation_key, params)
    given = {**params, **simulation.minibatch}
    draws = FreshDraws(_ASKER, simulator.model, guide, *simulation.arguments, sites)
    first = draws.draw(guide_key, given)
    latents = rows_of(first.group.names, simulation.sites, first.run.guide)

    def count(ranked: _Ranked, rng_key: Key[Array, ""]) -> tuple[_Ranked, None]:
        codes = draws.draw(rng_key, given).group.posterior.values
        ranks = ranked.ranks + (codes < latents.values)
        return _Ranked(latents, ranks, ranked.is_finite & jnp.isfinite(codes)), None

    start = _Ranked(
        latents, jnp.zeros(latents.values.shape, int), jnp.ones(latents.values.shape, bool)
    )
    ranked, _ = jax.lax.scan(count, start, jax.random.split(guide_key, num_samples))
    return ranked


def _counted(ranked: _Ranked) -> tuple[Int[np.ndarray, "data dims"], tuple[str, ...]]:
    """The ranks of the latents that are not masked, and their dimensions' names."""
    dimensions, weights = feature_names(ranked.latents), ranked.latents.weights
    counted = slice(None) if weights is None else np.asarray(weights) > 0
    for is_finite, source in (
        (jnp.isfinite(ranked.latents.values), "model draws"),
        (ranked.is_finite, "guide draws"),
    ):
        check_finite(np.asarray(is_finite)[counted], dimensions, asker=_ASKER, source=source)
    return np.asarray(ranked.ranks)[counted], dimensions

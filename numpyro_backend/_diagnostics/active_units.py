# SPDX-License-Identifier: MIT
"""Which dimensions of the code tell the data apart at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Key

from numpyro_backend._diagnostics.data_runs import DataRuns
from numpyro_backend._traces.fresh_draws import Draw
from numpyro_backend._traces.runs import Program, Run
from numpyro_backend.rows import normal_rows
from pyro_infovae._core.pair_statistics import mean_of_pairs, standard_error_of_pairs

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

    variance: Float[np.ndarray, " dims"]
    standard_error: Float[np.ndarray, " dims"]
    threshold: float
    dimensions: tuple[str, ...]
    num_data: int

    @property
    def active(self) -> Bool[np.ndarray, " dims"]:
        """Whether the variance is above the threshold."""
        return self.variance > self.threshold

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return int(self.active.sum())


def active_units(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
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
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
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
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> x = jnp.array([-3.0, -1.0, 1.0, 3.0])
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ...         numpyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         loc = jnp.stack([x / 2, 0 * x], -1)  # the second dimension ignores x
        ...         numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        >>> units = active_units(jax.random.key(0), {}, model, guide, x)
        >>> units.num_active, units.variance.round(4)
        (1, array([1.6667, 0.    ], dtype=float32))
    """
    if not threshold >= 0:
        raise ValueError(f"Expected threshold >= 0; got {threshold}")
    if num_samples < 4:
        raise ValueError(f"Expected num_samples >= 4; got {num_samples}")
    first_key, means_key = jax.random.split(rng_key)
    runs = DataRuns.of(_ASKER, first_key, params, model, guide, args, kwargs, sites)
    means = runs.repeat(means_key, _means, num_samples)
    runs.check_finite(means, "guide gives")
    variance, standard_error = _variance_of_expectation(means)
    return ActiveUnits(variance, standard_error, threshold, runs.features, num_data=len(runs.kept))


def _means(draw: Draw) -> Float[Array, "rows features"]:
    """What has the mean E[z | x] in every run, and varies as little as is known."""
    drawn = draw.group.posterior.latents
    return jnp.concatenate([_location(name, draw.run, drawn[name]) for name in drawn], -1)


def _location(
    name: str, run: Run, drawn: Float[Array, "rows features"]
) -> Float[Array, "rows features"]:
    if run.guide[name].event_dim != run.model[name].event_dim:
        # The guide's rows are not the model's: it draws all data at once, say.
        return drawn
    normal = normal_rows(name, run.guide, run.model)
    return drawn if normal is None else normal[0]


def _variance_of_expectation(
    draws: Float[np.ndarray, "runs data dims"],
) -> tuple[Float[np.ndarray, " dims"], Float[np.ndarray, " dims"]]:
    """The covariance over the data of different runs, and its standard error."""
    centred = draws - draws.mean(1, keepdims=True)
    covariance = np.einsum("sid,tid->dst", centred, centred) / (draws.shape[1] - 1)
    if np.array_equal(draws[0], draws[1]):
        return covariance[:, 0, 1], np.zeros_like(covariance[:, 0, 1])
    pairs = covariance.astype(float)
    for of_dimension in pairs:
        np.fill_diagonal(of_dimension, 0.0)
    return (
        np.array([mean_of_pairs(of_dimension) for of_dimension in pairs], draws.dtype),
        np.array([standard_error_of_pairs(of_dimension) for of_dimension in pairs], draws.dtype),
    )

# SPDX-License-Identifier: MIT
"""Does q(z) match p(z)? A permutation test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._diagnostics.data_runs import DataRun, DataRuns
from numpyro_backend._traces.fresh_draws import numpy_generator
from numpyro_backend._traces.runs import Program
from numpyro_backend.kernels import RBF, Kernel
from pyro_infovae._core.pair_statistics import (
    mean_of_pairs,
    permutation_p_value,
    standard_error_of_pairs,
)

_ASKER = "mmd_test"


@dataclass(frozen=True)
class MMDTest:
    """The discrepancy of aggregated posterior and prior, and whether it may be chance.

    Attributes:
        mmd_squared: the unbiased estimate of MMD²(q(z), p(z)), which may be slightly negative.
        standard_error: its standard error, over the data and the draws.
        p_value: how often a discrepancy as large is met where q(z) = p(z).
        num_data: the data whose codes were compared.
        num_permutations: the permutations that the p-value comes from.
    """

    mmd_squared: float
    standard_error: float
    p_value: float
    num_data: int
    num_permutations: int


def mmd_test(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    kernel: Kernel | None = None,
    num_permutations: int = 1000,
    max_data: int = 2000,
    sites: Iterable[str] | None = None,
    **kwargs: Any,
) -> MMDTest:
    r"""Test whether the aggregated posterior is the prior.

    .. math::
        \mathrm{MMD}^2 = \frac{1}{n (n - 1)} \sum_{i \ne j}
        k(z_i, z_j) + k(z'_i, z'_j) - k(z_i, z'_j) - k(z'_i, z_j),
        \qquad z_i \sim q(z \mid x_i), \; z'_i \sim p(z)

    Each datum has a code from the guide and one from the model, all other latents as the guide drew
    them. Where q(z) = p(z) the two may be swapped, and the p-value is the fraction of random
    swaps with a discrepancy as large, which is below 5% for at most 5% of data sets. The data must
    be independent of one another, given the latents outside their plates. A plate with a
    ``subsample_size`` is run over all its minibatches.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both.
        kernel: a kernel of :mod:`numpyro_backend.kernels`, or any callable ``(x, y) -> matrix``
            that is symmetric and positive definite; ``RBF()`` by default, as in
            :class:`~numpyro_backend.TraceMMD_ELBO`.
        num_permutations: the number B of random swaps; no p-value is below 1 / (1 + B).
        max_data: where there are more data, a random choice of so many is compared: time and
            memory grow with its square.
        sites: the latents, by name, in one stack of plates; their joint distribution counts. By
            default every reparameterised latent in plates.
        **kwargs: keyword arguments of both.

    Returns:
        The discrepancy, its standard error and p-value.

    Raises:
        ValueError: for a number out of range, fewer than 4 data, codes that are not finite, a
            kernel of another shape, or more than one subsampled plate.

    References:
        Gretton, Borgwardt, Rasch, Schölkopf, Smola. A Kernel Two-Sample Test. JMLR 13, 2012.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> x = jax.random.normal(jax.random.key(0), (200,))
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x, 0.5))  # Var(z) = 1.25
        >>> test = mmd_test(jax.random.key(1), {}, model, lambda x: guide(x + 1.0), x)
        >>> round(test.p_value, 3)
        0.001
    """
    if num_permutations < 1:
        raise ValueError(f"Expected num_permutations >= 1; got {num_permutations}")
    check_max_data(max_data)
    keys = jax.random.split(rng_key, 4)
    runs = DataRuns.of(_ASKER, keys[0], params, model, guide, args, kwargs, sites)
    contrasts = contrasts_of_codes(keys[1], runs.draw(keys[2]), kernel, max_data)
    rng = numpy_generator(keys[3])
    return MMDTest(
        mmd_squared=mean_of_pairs(contrasts),
        standard_error=standard_error_of_pairs(contrasts),
        p_value=permutation_p_value(contrasts, num_permutations, rng),
        num_data=len(contrasts),
        num_permutations=num_permutations,
    )


def check_max_data(max_data: int) -> None:
    """Refuse so few data that the error of their discrepancy cannot be estimated."""
    if max_data < 4:
        raise ValueError(f"Expected max_data >= 4; got {max_data}")


def contrasts_of_codes(
    rng_key: Key[Array, ""], run: DataRun, kernel: Kernel | None, max_data: int
) -> Float[np.ndarray, "data data"]:
    """The contrasts of the codes of guide and prior, for `pair_statistics`.

    Raises:
        ValueError: for fewer than 4 data, codes that are not finite, or a kernel of another shape.
    """
    num_data = len(run.runs.kept)
    if num_data < 4:
        raise ValueError(f"{run.runs.draws.asker}: Expected at least 4 data; got {num_data}")
    posterior, prior = run.codes
    chosen = numpy_generator(rng_key).permutation(num_data)[:max_data]
    contrasts = shared_jit(partial(pair_contrasts, kernel=kernel or RBF()))
    return np.array(contrasts(posterior[chosen], prior[chosen]), float)


def pair_contrasts(
    x: Float[Array, "n d"], y: Float[Array, "n d"], kernel: Kernel
) -> Float[Array, "n n"]:
    r"""Return :math:`k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)`, 0 on the diagonal.

    Raises:
        ValueError: when the kernel gives no matrix.
    """
    n = len(x)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    for pairs in (xx, yy, xy):
        if pairs.shape != (n, n):
            raise ValueError(f"Expected kernel(x, y) of shape {(n, n)}; got {tuple(pairs.shape)}")
    return jnp.fill_diagonal(xx + yy - xy - xy.T, 0.0, inplace=False)

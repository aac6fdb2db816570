# SPDX-License-Identifier: MIT
"""From a model and its guide to ArviZ: posterior, predictions, log likelihoods and prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpyro
from jax import Array
from jaxtyping import Key
from numpyro.infer.elbo import ELBO

from numpyro_backend._inference_data.predictive_draws import PredictiveSampler
from numpyro_backend._traces.runs import Program
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from pyro_infovae._core.arviz import build, check_names, describe, load_arviz

__all__ = ["to_inference_data"]


def to_inference_data(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    refine: TraceHamiltonian_ELBO | None = None,
    objective: ELBO | None = None,
    **kwargs: Any,
) -> Any:
    r"""Draw from a guide and a model, for ArviZ to summarise, plot, compare and save.

    ============================ ===================================================================
    group                        holds, for S draws
    ============================ ===================================================================
    ``posterior``                the latents that the guide draws, and deterministic sites
    ``posterior_predictive``     the observed sites drawn afresh, and latents that only the model
                                 draws
    ``log_likelihood``           :math:`\log p(x_i \mid z_s)` in nats, per row i of each observed
                                 site: without scales and subsampling factors, without factors
    ``prior``                    what ``posterior`` holds, drawn from the model alone
    ``prior_predictive``         what ``posterior_predictive`` holds, likewise
    ``observed_data``            the data
    ============================ ===================================================================

    A site has the dims (chain, draw, \*plates, \*event): plates by their names, with the indices of
    a minibatch as coordinates, and event dims, or dims in no plate, as ``z_dim_0``, ``z_dim_1``.
    There is one chain.

    Rows of an observed site that are masked are left out, for :func:`arviz.loo` would count them;
    where there are any, the rest of ``x`` has a single dim ``x_row`` in place of its plates, whose
    coordinates are the positions in the full data, counted along the plates in row-major order. A
    minibatch is drawn once; ``handlers.substitute`` with the rows of the plate under its name
    determines which.

    Args:
        rng_key: the key to draw with.
        params: the values of parameters and mutable sites, by name, ``svi_result.params`` say.
        model: the model.
        guide: the guide.
        *args: positional arguments of both. The data may be among them: predictions are drawn
            where the model observes.
        num_samples: the number S of draws. Each holds a prediction of every datum.
        chunk_size: most draws per run, mapped over by :func:`jax.vmap`; by default so many that no
            site holds more than 2²³ numbers. 1 runs the programs as they are, draw by draw, which
            is for programs that cannot be vectorised. The draws are the same.
        refine: draws from ``refine.refine(model, guide)`` in the guide's place.
        objective: the objective that the guide was trained under, to be named in the attributes.
        **kwargs: keyword arguments of both.

    Returns:
        An ``arviz.InferenceData``, or from ArviZ 1.0 on an ``xarray.DataTree``. Its ``attrs`` name
        ``objective`` and ``refine``, where given, and have under ``objective_settings`` and
        ``refine_settings`` such of their arguments as JSON can hold.

    Raises:
        ModuleNotFoundError: where ArviZ is not installed.
        ValueError: naming the site: for draws or log likelihoods that are nan, a latent that only
            the guide draws or that the model sums out, or a name that ArviZ uses itself; for a
            model without data, or a number out of range.

    References:
        Kumar, Carroll, Hartikainen, Martin, *ArviZ: a unified library for exploratory analysis of
        Bayesian models in Python*, Journal of Open Source Software 4(33), 1143.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> x = jnp.array([0.5, -1.0, 2.0])
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> data = to_inference_data(jax.random.key(0), {}, model, guide, x, num_samples=100)
        >>> data.log_likelihood["x"].dims
        ('chain', 'draw', 'data')
    """
    arviz = load_arviz("to_inference_data")
    if num_samples < 1:
        raise ValueError(f"Expected num_samples >= 1; got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size >= 1; got {chunk_size}")
    attrs = {"inference_library": "numpyro"}
    if objective is not None:
        attrs |= describe("objective", objective)
    if refine is not None:
        attrs |= describe("refine", refine)
        guide = refine.refine(model, guide)
    site_key, draw_key = jax.random.split(rng_key)
    with numpyro.validation_enabled(False):
        sampler = PredictiveSampler.of(site_key, params, model, guide, args, kwargs)
        check_names(sampler.axes)
        keys = jax.random.split(draw_key, num_samples)
        draws = sampler.draw(keys, chunk_size).without_masked_rows()
    draws.check(sampler.latents)
    return build(arviz, draws, attrs)

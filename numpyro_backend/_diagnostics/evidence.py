# SPDX-License-Identifier: MIT
"""How probable the data are under a model: importance-weighted log p(x), row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Key

from numpyro_backend._traces.fresh_draws import set_up
from numpyro_backend._traces.importance_weights import ImportanceSampler
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from pyro_infovae._core import evidence
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.evidence import Evidence
from pyro_infovae._core.information import check_chunks
from pyro_infovae._core.programs import Program


@documented(evidence.LOG_EVIDENCE)
def log_evidence(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    elbo: TraceHamiltonian_ELBO | None = None,
    **kwargs: Any,
) -> Evidence[np.ndarray]:
    """Estimate log p(x) by importance sampling from a guide.

    Example:
        $programs
        >>> x = jnp.array([0.5, -1.0, 2.0])
        >>> log_evidence(key, {}, model, guide, x, num_samples=100).log_evidence.round(4)
        array([-1.328 , -1.5155, -2.2655], dtype=float32)
    """
    check_chunks(num_samples, chunk_size)
    layout_key, draws_key = jax.random.split(rng_key)
    set_up(layout_key, guide, args, kwargs)
    if elbo is not None:
        guide = elbo.refine(model, guide)
    sampler = ImportanceSampler(params, model, guide, args, kwargs)
    layout = sampler.layout(layout_key)
    keys = jax.random.split(draws_key, num_samples)
    found = Evidence(np.asarray(sampler.log_weights(keys, layout, chunk_size)))
    evidence.warn_if_unreliable(found)
    return found

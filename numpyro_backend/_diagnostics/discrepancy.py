# SPDX-License-Identifier: MIT
"""Does q(z) match p(z)? A permutation test, and a weight of the MMD to start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from numpyro_backend._arrays.shared_jit import shared_jit
from numpyro_backend._diagnostics.data_runs import codes, run_over_data
from numpyro_backend._traces.fresh_draws import Draw, log_prob, numpy_generator
from numpyro_backend.kernels import RBF, Kernel
from pyro_infovae._core import discrepancy
from pyro_infovae._core.discrepancy import MMDTest, SuggestedLambd
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program


@documented(discrepancy.MMD_TEST)
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
    """Test whether the aggregated posterior is the prior.

    Example:
        $programs
        >>> x = jax.random.normal(jax.random.key(1), (200,))
        >>> test = mmd_test(key, {}, model, lambda x: guide(x + 3.0), x)
        >>> round(test.p_value, 3)
        0.001
    """
    discrepancy.check_mmd_test(num_permutations, max_data)
    first_key, draw_key, test_key = jax.random.split(rng_key, 3)
    runs = run_over_data("mmd_test", first_key, params, model, guide, args, kwargs, sites)
    return discrepancy.ask_mmd_test(
        runs,
        runs.draw(codes, draw_key),
        shared_jit(kernel or RBF()),
        numpy_generator(test_key),
        num_permutations=num_permutations,
        max_data=max_data,
    )


@documented(discrepancy.SUGGEST_LAMBD)
def suggest_lambd(
    rng_key: Key[Array, ""],
    params: Mapping[str, Any],
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
    """Suggest the weight λ at which the MMD has a given share of the reconstruction term.

    Example:
        $programs
        >>> x = 3.0 * jax.random.normal(jax.random.key(1), (500,))
        >>> suggested = suggest_lambd(key, {}, model, guide, x, share=0.1)
        >>> mmd_term = 500 * (suggested.lambd - 1) * suggested.mmd_squared
        >>> round(mmd_term / abs(suggested.log_likelihood), 4)
        0.1
    """
    discrepancy.check_suggest_lambd(share, alpha, max_data)
    first_key, choice_key, draw_key = jax.random.split(rng_key, 3)
    runs = run_over_data("suggest_lambd", first_key, params, model, guide, args, kwargs, sites)
    observed = [name for name, site in runs.first.run.model.items() if site.is_data]
    discrepancy.check_observes(runs.caller, observed)
    return discrepancy.ask_suggest_lambd(
        runs,
        runs.run(_codes_and_log_likelihood)(draw_key),
        shared_jit(kernel or RBF()),
        numpy_generator(choice_key),
        share=share,
        alpha=alpha,
        max_data=max_data,
    )


def _codes_and_log_likelihood(draw: Draw) -> tuple[Array, Array, Array]:
    return *codes(draw), _log_likelihood(draw)


def _log_likelihood(draw: Draw) -> Float[Array, ""]:
    """The log density of the data as the loss has it: scaled to the full data, masks heeded."""
    observed = [draw.model[name] for name, site in draw.run.model.items() if site.is_data]
    terms = [
        jnp.sum(log_prob(msg) * (1.0 if msg["scale"] is None else msg["scale"])) for msg in observed
    ]
    return jnp.sum(jnp.stack(terms))

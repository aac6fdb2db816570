"""The default weight of the MMD leaves the data in the code, as README's program has it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO

from benchmarks.mmd_weights import trained, two_normals
from numpyro_backend import TraceMMD_ELBO


@pytest.mark.slow
def test_two_normals_in_numpyro() -> None:
    problem, keys = two_normals(), jax.random.split(jax.random.key(1), 3)
    stock, ours = (
        jax.jit(jax.vmap(lambda key, o=objective: trained(problem, o, problem.steps, key)))(keys)
        for objective in (Trace_ELBO(), TraceMMD_ELBO())
    )
    assert (ours["KL"] > 1).all()
    np.testing.assert_array_less(stock["log p(x)"] - 0.15, ours["log p(x)"])
    assert (ours["swing"] < 1).all()

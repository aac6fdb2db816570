"""A point mass beside a latent with a density has no density of its own, and does not flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.objectives.alone import slow_in_numpyro

N = 5


def programs(half: Half) -> Case:
    """The guide draws a code through an auxiliary variable, and has a point for the mean."""
    dist = half.dist

    def model(x: Any) -> None:
        mu = half.sample("mu", dist.Normal(0.0, 1.0))
        with half.plate("data", N):
            z = half.sample("z", dist.Normal(mu, 1.0))
            half.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Any) -> None:
        half.sample("mu", dist.Delta(half.param("point", 0.3)))
        with half.plate("data", N):
            fn = dist.Normal(half.param("loc", np.zeros(N)), 0.4)
            noise = half.sample("noise", fn, infer={"is_auxiliary": True})
            half.sample("z", dist.Delta(noise))

    return Case(model, guide, (half.xp.asarray(np.linspace(-1.0, 1.0, N)),))


def test_is_refused(half: Half) -> None:
    elbo = half.library.TraceHamiltonian_ELBO(2, 0.1)
    with pytest.raises(ValueError, match=r"'mu' is a point mass.*name others in sites"):
        half.evaluate(elbo, programs(half))


@slow_in_numpyro
def test_the_others_flow(half: Half) -> None:
    still = half.library.TraceHamiltonian_ELBO(2, 0.0, learn=False, sites=["z"])
    moved = half.library.TraceHamiltonian_ELBO(2, 0.1, learn=False, sites=["z"])
    stock, same, other = half.losses(
        [half.infer.Trace_ELBO(), still, moved], programs(half), count=4
    )
    np.testing.assert_allclose(same, stock, rtol=1e-12)
    assert np.isfinite(other).all()
    assert (other != stock).all()

"""A draw that no flow can start from counts as under the stock ELBO."""

from __future__ import annotations

import numpy as np
import pytest

from tests.halves import Case, GivenArrays, Half


@pytest.mark.filterwarnings("ignore:TraceHamiltonian_ELBO. the guide draws 'z' on the edge")
def test_a_row_on_the_edge_of_its_support(half: Half) -> None:
    """In float32 the logarithm of exp(-60) has a slope whose square overflows."""
    noise = np.array([[0.4, -0.3], [1.0, 0.5]], np.float32)
    with half.precision(double=False):
        x = half.xp.asarray(np.array([0.0, 3.0], np.float32))

        def model() -> None:
            with half.plate("data", 2):
                z = half.sample("z", half.dist.Gamma(0.5, 1.0 + 0 * x))
                half.sample("x", half.dist.Poisson(z), obs=x)

        def guide() -> None:
            loc = half.param("loc", np.array([-60.0, 0.5], np.float32))
            with half.plate("data", 2):
                half.sample("z", half.dist.LogNormal(loc, 0.5))

        objectives = [
            half.infer.Trace_ELBO(),
            half.library.TraceHamiltonian_ELBO(3, 0.2, path="posterior"),
        ]
        stock, flow = half.steps(objectives, Case(model, guide), draws=lambda: GivenArrays(*noise))
    assert flow.grads["loc"][0] == pytest.approx(stock.grads["loc"][0], rel=1e-4)
    assert flow.grads["loc"][1] != pytest.approx(stock.grads["loc"][1], rel=1e-2)
    assert np.isfinite(flow.grads["hamiltonian.step_size"])
    assert flow.grads["hamiltonian.step_size"] != 0

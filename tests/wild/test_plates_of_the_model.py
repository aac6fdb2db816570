"""A guide that draws a minibatch outside of its plate is told so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.halves import Case, Half

X = np.linspace(-1.0, 1.0, 6)


def test_a_latent_whose_plate_the_guide_leaves_out(half: Half) -> None:
    x, index = half.xp.asarray(X[:3]), np.arange(3)

    def model() -> None:
        with half.plate("data", 6, index=index):
            z = half.sample("z", half.dist.Normal(0.0, 1.0))
            half.sample("x", half.dist.Normal(z, 0.5), obs=x)

    def guide() -> None:
        half.sample("z", half.dist.Normal(x, 0.8))

    def remedied() -> None:
        with half.plate("data", 6, index=index):
            guide()

    def flow() -> Any:
        return half.library.TraceHamiltonian_ELBO(1, 0.1, learn=False)

    with pytest.raises(ValueError, match=r"'z' is drawn outside plate 'data' by the guide, .*"):
        half.evaluate(flow(), Case(model, guide))
    half.evaluate(flow(), Case(model, remedied))

"""A scale that all sites share, Pyro's own advice for losses per datum, scales the loss alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_pyro

X = np.linspace(-2.0, 2.0, 6)
INDEX = np.array([0, 3, 4])


def programs(half: Half, index: np.ndarray | None, *, likelihood: float = 1.0) -> Case:
    x = half.xp.asarray(X if index is None else X[index])

    def model() -> None:
        with half.plate("data", len(X), index=index):
            z = half.sample("z", half.dist.LogNormal(0.0, 1.0))
            with half.scale(likelihood):
                half.sample("x", half.dist.Normal(z, 0.5), obs=x)

    def guide() -> None:
        scale = half.param("scale", np.array(0.8), constraint=half.dist.constraints.positive)
        with half.plate("data", len(X), index=index):
            half.sample("z", half.dist.LogNormal(0.3 * x, scale))

    return Case(model, guide)


def scaled(half: Half, case: Case, factor: Any) -> Case:
    scale = half.handlers.scale
    return Case(scale(case.model, scale=factor), scale(case.guide, scale=factor))


@in_both("kind", ["number", "array"], quick=[])
def test_shared_scale(half: Half, kind: str) -> None:
    case = programs(half, INDEX if kind == "number" else None)
    factor = half.xp.asarray(1 / len(X)) if kind == "array" else 1 / len(X)
    flow = half.library.TraceHamiltonian_ELBO(step_size=0.1)
    (plain,) = half.steps([flow], case)
    (shared,) = half.steps([flow], scaled(half, case, factor))
    assert shared.loss == pytest.approx(plain.loss / len(X), rel=1e-12)
    for name, gradient in plain.grads.items():
        np.testing.assert_allclose(shared.grads[name], gradient / len(X), rtol=1e-10)


@in_pyro
def test_the_scale_of_one_site_is_part_of_the_density(half: Half) -> None:
    """A likelihood weighted by 2 is that of another posterior, whatever is around the program."""
    flow = half.library.TraceHamiltonian_ELBO(step_size=0.1, learn=False)
    plain, weighted = programs(half, None), programs(half, None, likelihood=2.0)
    assert half.loss(flow, weighted) != pytest.approx(half.loss(flow, plain), rel=1e-3)
    still = half.library.TraceHamiltonian_ELBO(step_size=0.0, learn=False)
    gains = [half.loss(still, case) - half.loss(flow, case) for case in (plain, weighted)]
    assert min(gains) > 0

"""TraceInfoMax_ELBO over other ELBOs than the default one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO, TraceMMD_ELBO
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import CRITIC, concat
from tests.numpyro_backend.steps import (
    BASES,
    CASES,
    PARTICLES,
    WithParameter,
    seeded,
    trained,
    wrapped,
)

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def check(ours: Any, stock: ELBO, case: Programs) -> None:
    case = wrapped(ours, case)
    (loss, grads), (expected, expected_grads) = seeded(ours, stock, case=case)
    assert loss == pytest.approx(expected, rel=1e-12)
    critic = jax.tree.leaves(grads.pop(CRITIC))
    del expected_grads[CRITIC]
    assert grads.keys() == expected_grads.keys()
    assert grads
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-12, atol=1e-14)
    assert len(critic) == 4
    assert all(jnp.abs(grad).max() > 0 for grad in critic)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_reproduces_any_base(base: Callable[..., ELBO]) -> None:
    ours, stock = (base(**PARTICLES["vectorised"]) for _ in range(2))
    check(TraceInfoMax_ELBO(concat(), 0.0, base=ours), stock, CASES["masked"])


def test_reproduces_a_base_that_declares_parameters_too() -> None:
    ours, stock = (TraceHamiltonian_ELBO(num_steps=1) for _ in range(2))
    check(TraceInfoMax_ELBO(concat(), 0.0, base=ours), stock, CASES["plain"])


def test_scores_beyond_every_bound_do_not_reach_the_guide() -> None:
    class Infinite:
        def init(self, rng_key: Array) -> dict[str, Array]:
            return {}

        def bind(self, params: Any) -> Callable[[Array, Array], Array]:
            return lambda x, z: z.sum(1) * math.inf

    ours = TraceInfoMax_ELBO(Infinite(), 0.0, base=Trace_ELBO())
    (loss, grads), (_, expected) = seeded(ours, Trace_ELBO(), case=wrapped(ours, CASES["plain"]))
    assert math.isnan(loss)
    for name, grad in expected.items():
        jax.tree.map(np.testing.assert_allclose, grads[name], grad)


def test_the_penalty_reaches_the_gradient_over_any_base() -> None:
    """At β=0 the bases agree: what is left is the likelihood and the penalty."""
    objectives = [
        TraceInfoMax_ELBO(concat(), 0.3, 0.0, base=base)
        for base in (Trace_ELBO(), TraceGraph_ELBO(), TraceMeanField_ELBO())
    ]
    case = wrapped(objectives[0], CASES["plain"])
    (expected, expected_grads), *others = seeded(*objectives, case=case)
    for loss, grads in others:
        assert loss == pytest.approx(expected, rel=1e-9)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), grads, expected_grads)


def test_composes_with_the_other_penalised_objective() -> None:
    stock = TraceMeanField_ELBO()
    mmd = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form", base=stock)
    alone = TraceInfoMax_ELBO(concat(), 0.7, base=stock)
    over, under = (
        TraceInfoMax_ELBO(concat(), 0.7, base=mmd),
        TraceMMD_ELBO(0.0, 3.0, estimator="closed_form", base=alone),
    )
    case = wrapped(alone, programs.vae())
    steps = seeded(stock, mmd, alone, over, under, case=case)
    expected = jax.tree.map(lambda a, b, c: b + c - a, *steps[:3])
    for step in steps[3:]:
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10),
            step,
            expected,
        )


def test_trains_beside_the_parameters_of_the_base() -> None:
    (model, guide, args), _ = programs.counting(64)
    objective = TraceInfoMax_ELBO(concat(1, 1), base=WithParameter())
    svi = numpyro_backend.SVI(model, guide, Adam(0.1), loss=objective)
    params = trained(svi, *args, steps=300).params
    assert params["own"] == pytest.approx(3.0, abs=0.05)
    assert params.keys() == {"own", "loc", CRITIC}

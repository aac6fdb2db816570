"""Training with TraceMMD_ELBO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.steps import Params, WithParameter, assert_update_compiled_once, trained

pytestmark = pytest.mark.usefixtures("quick_double_precision")


@pytest.mark.parametrize("base", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_the_state_is_that_of_the_first_particle(base: Callable[..., Any]) -> None:
    (model, guide, args), _ = programs.counting(4)
    key = jax.random.key(0)
    params = {"loc": 0.5, "state": {"runs": jnp.asarray(6.0), "z": jnp.zeros(4)}}

    def state_after(objective: Any, key: Array) -> Any:
        result = objective.loss_with_mutable_state(key, params, model, guide, *args)
        return result["mutable_state"]["state"]

    @jax.jit
    def states() -> list[Any]:
        keys = key, jax.random.split(key, 3)[0]
        return [
            (
                state_after(TraceMMD_ELBO(base=base(num_particles=particles)), key),
                state_after(Trace_ELBO(), first),
            )
            for particles, first in zip((1, 3), keys, strict=True)
        ]

    for ours, stock in states():
        assert ours["runs"] == stock["runs"] == 7
        np.testing.assert_allclose(ours["z"], stock["z"])


def test_update_is_compiled_once() -> None:
    assert_update_compiled_once(4, SVI, TraceMMD_ELBO(0.0, 10.0))


def test_trains_with_and_without_a_progress_bar() -> None:
    case = programs.vae()
    svi = SVI(case.model, case.guide, Adam(1e-2), loss=TraceMMD_ELBO(0.0, 10.0))
    bar, none = (
        svi.run(jax.random.key(0), 40, *case.args, progress_bar=shown).losses
        for shown in (True, False)
    )
    np.testing.assert_allclose(bar, none, rtol=1e-9)
    assert none[-10:].mean() < none[:10].mean()


def test_the_penalty_moves_the_aggregated_posterior_to_the_prior() -> None:
    model, guide, (x,) = programs.vae(num=20)
    x = x + 4
    measure = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", base=Trace_ELBO())

    @jax.jit
    def measured(params: Params) -> Array:
        run = jax.random.key(1), params, model, guide, x
        return measure.loss(*run) - measure.base.loss(*run)

    def train(objective: Any) -> float:
        svi = SVI(model, guide, Adam(5e-2), loss=objective)
        return float(measured(trained(svi, x, steps=100).params))

    assert train(TraceMMD_ELBO(0.0, 1000.0)) < 0.5 * train(TraceMeanField_ELBO())


@pytest.mark.parametrize("objective", [WithParameter(), TraceMMD_ELBO(base=WithParameter())])
def test_svi_trains_the_parameters_of_the_objective(objective: Any) -> None:
    (model, guide, args), _ = programs.counting(4)
    svi = numpyro_backend.SVI(model, guide, Adam(0.1), loss=objective)
    params = trained(svi, *args, steps=300).params
    assert params["own"] == pytest.approx(3.0, abs=0.05)
    assert "loc" in params

"""Training with TraceHamiltonian_ELBO."""

from __future__ import annotations

import jax
import numpy as np
import numpyro
import pytest
from jax import Array
from numpyro.infer import Trace_ELBO
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO, TraceMMD_ELBO
from tests.numpyro_backend import programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_trains_with_svi_in_one_compilation() -> None:
    runs: list[str] = []
    case = programs.vae(num=40, batch=10)

    def model(x: Array) -> None:
        runs.append("model")
        case.model(x)

    elbo = TraceHamiltonian_ELBO(3, 0.1, per_step=True, tempering="free")
    svi = numpyro_backend.SVI(model, case.guide, Adam(1e-2), elbo)
    state = jax.jit(svi.init)(jax.random.key(0), *case.args)
    start = svi.get_params(state)
    update, evaluate = jax.jit(svi.update), jax.jit(svi.evaluate)
    before = float(evaluate(state, *case.args))
    state, _ = update(state, *case.args)
    traced = len(runs)
    for _ in range(150):
        state, _ = update(state, *case.args)
    assert len(runs) == traced
    assert float(evaluate(state, *case.args)) < before
    end = svi.get_params(state)
    for name in ("hamiltonian.step_size", "hamiltonian.tempering_factors"):
        assert start[name].shape == (3,)
        assert not np.allclose(start[name], end[name])
        assert ((end[name] > 0) & (end[name] < (0.5 if "step" in name else 1))).all()


def test_a_penalised_objective_declares_the_parameters_of_its_base() -> None:
    model, guide, args = programs.vae(num=8)
    objective = TraceMMD_ELBO(0.0, 5.0, base=TraceHamiltonian_ELBO(2, {"z": 0.1}, name="flow"))
    svi = numpyro_backend.SVI(model, guide, Adam(1e-2), objective)
    params = jax.eval_shape(lambda key: svi.get_params(svi.init(key, *args)), jax.random.key(0))
    flow = {"flow.step_size_z", "flow.beta_0"}
    assert params.keys() == {"encoder", "scale", "decoder"} | flow


def test_the_objective_is_the_refined_guide_under_the_stock_elbo() -> None:
    """With NumPyro's own SVI too, whose trace of the refined guide has all parameters."""
    model, guide, args = programs.vae(num=8)
    elbo = TraceHamiltonian_ELBO(2)
    ours = numpyro_backend.SVI(model, guide, Adam(1e-2), elbo)
    stock = numpyro.infer.SVI(model, elbo.refine(model, guide), Adam(1e-2), Trace_ELBO())

    @jax.jit
    def losses() -> list[tuple[Array, Array]]:
        return [svi.update(svi.init(jax.random.key(0), *args), *args)[1] for svi in (ours, stock)]

    first, second = losses()
    assert float(first) == pytest.approx(float(second), rel=1e-12)

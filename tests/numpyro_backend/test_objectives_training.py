"""Training with the objectives: mutable state, compilation, and parameters of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import Array
from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae._core.flow_options import Path
from tests.numpyro_backend import programs
from tests.numpyro_backend.half import NUMPYRO
from tests.numpyro_backend.runs import jit
from tests.numpyro_backend.steps import WithParameter
from tests.objectives.critics import recording

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]
CRITIC = "critic$params"


def infomax(**settings: Any) -> TraceInfoMax_ELBO:
    return TraceInfoMax_ELBO(recording(NUMPYRO, [], x_dim=1, z_dim=1), **settings)


def trained(svi: Any, *args: Any, steps: int) -> Any:
    """The parameters after some steps, of which one program is compiled."""

    @jit
    def train(key: Array) -> Any:
        state = svi.init(key, *args)
        state, _ = jax.lax.scan(lambda state, _: svi.update(state, *args), state, length=steps)
        return svi.get_params(state)

    return train(jax.random.key(0))


@pytest.mark.parametrize("base", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_state_is_that_of_the_first_particle(base: Callable[..., Any], particles: int) -> None:
    (model, guide, args), _ = programs.counting(4)
    key = jax.random.key(0)

    @jit
    def states() -> list[Any]:
        state = {"runs": jnp.asarray(6.0), "z": jnp.zeros(4)}
        shown = infomax(base=base(num_particles=particles))
        params = {"loc": 0.5, "state": state, CRITIC: shown.critic.init(key)}
        first = jax.random.split(key, 3)[0] if particles > 1 else key
        ours = [(shown, key), (TraceMMD_ELBO(base=base(num_particles=particles)), key)]
        results = [
            elbo.loss_with_mutable_state(k, params, elbo.wrap_model(model), guide, *args)
            for elbo, k in ours
        ]
        results.append(Trace_ELBO().loss_with_mutable_state(first, params, model, guide, *args))
        return [result["mutable_state"]["state"] for result in results]

    *ours, stock = states()
    for state in ours:
        assert state["runs"] == stock["runs"] == 7
        np.testing.assert_allclose(state["z"], stock["z"])


def test_mutable_state_counts_the_updates() -> None:
    """The programs run in Python for the first update only, and in the compiled one ever after."""
    (model, guide, args), calls = programs.counting(64)
    svi = SVI(model, guide, Adam(1e-2), loss=TraceMMD_ELBO(0.0, 10.0))
    state = jit(svi.init)(jax.random.key(0), *args)
    update = jit(svi.update)
    state, _ = update(state, *args)
    traced = len(calls)
    for _ in range(3):
        state, _ = update(state, *args)
    assert len(calls) == traced
    assert state.mutable_state["state"]["runs"] == 1 + 4


@pytest.mark.parametrize(
    "objective",
    [WithParameter(), TraceMMD_ELBO(base=WithParameter()), "infomax"],
    ids=["alone", "mmd", "infomax"],
)
def test_svi_trains_the_parameters_of_the_objective(objective: Any) -> None:
    (model, guide, args), _ = programs.counting(64)
    is_infomax = objective == "infomax"
    loss = infomax(base=WithParameter()) if is_infomax else objective
    params = trained(numpyro_backend.SVI(model, guide, Adam(0.1), loss=loss), *args, steps=300)
    assert params["own"] == pytest.approx(3.0, abs=0.05)
    assert params.keys() == {"own", "loc"} | ({CRITIC} if is_infomax else set())


class TestFlow:
    @pytest.mark.slow
    def test_is_trained_and_evaluated(self) -> None:
        model, guide, args = programs.vae(num=40, batch=10)
        elbo = TraceHamiltonian_ELBO(3, 0.1, per_step=True, tempering="free", path="posterior")
        svi = numpyro_backend.SVI(model, guide, Adam(1e-2), elbo)

        @jit
        def train(key: Array) -> Any:
            start = svi.init(key, *args)
            end, _ = jax.lax.scan(lambda state, _: svi.update(state, *args), start, length=150)
            return [(svi.get_params(state), svi.evaluate(state, *args)) for state in (start, end)]

        (start, before), (end, after) = train(jax.random.key(0))
        assert after < before
        for name in ("hamiltonian.step_size", "hamiltonian.tempering_factors"):
            assert start[name].shape == (3,)
            assert not np.allclose(start[name], end[name])
            assert ((end[name] > 0) & (end[name] < (0.5 if "step" in name else 1))).all()

    @pytest.mark.parametrize(
        ("path", "learned"),
        [
            ("annealed", {"step_size_z", "increment_logits", "persistence"}),
            ("posterior", {"step_size_z", "beta_0"}),
        ],
    )
    def test_is_declared_by_a_penalised_objective(self, path: Path, learned: set[str]) -> None:
        model, guide, args = programs.vae(num=8)
        base = TraceHamiltonian_ELBO(2, {"z": 0.1}, path=path, name="flow")
        objective = TraceMMD_ELBO(0.0, 5.0, base=base)
        svi = numpyro_backend.SVI(model, guide, Adam(1e-2), objective)
        params = jax.eval_shape(lambda key: svi.get_params(svi.init(key, *args)), jax.random.key(0))
        flow = {f"flow.{name}" for name in learned}
        assert params.keys() == {"encoder", "scale", "decoder"} | flow

    @pytest.mark.slow
    def test_is_the_refined_guide_under_the_stock_elbo(self) -> None:
        """With NumPyro's own SVI too, whose trace of the refined guide has all parameters."""
        model, guide, args = programs.vae(num=8)
        elbo = TraceHamiltonian_ELBO(2)
        ours = numpyro_backend.SVI(model, guide, Adam(1e-2), elbo)
        stock = numpyro.infer.SVI(model, elbo.refine(model, guide), Adam(1e-2), Trace_ELBO())

        @jit
        def losses() -> list[Array]:
            key = jax.random.key(0)
            return [svi.update(svi.init(key, *args), *args)[1] for svi in (ours, stock)]

        first, second = losses()
        assert float(first) == pytest.approx(float(second), rel=1e-12)

"""What the objectives refuse in NumPyro alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

from numpyro_backend import TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO
from numpyro_backend.mutual_information import nwj
from pyro_infovae._core.flow_options import Path
from tests.numpyro_backend import programs
from tests.numpyro_backend.steps import Params, evaluate_shapes

pytestmark = pytest.mark.usefixtures("quick_double_precision")

BASES = {
    "multi-sample": (
        Trace_ELBO(multi_sample_guide=True),
        r"multi_sample_guide=False; got Trace_ELBO\(multi_sample_guide=True\)",
    ),
    "loss by site": (
        TraceMeanField_ELBO(sum_sites=False),
        r"sum_sites=True; got TraceMeanField_ELBO\(sum_sites=False\)",
    ),
}


@pytest.mark.parametrize(("base", "match"), BASES.values(), ids=BASES)
def test_bases(base: Any, match: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=match):
        TraceMMD_ELBO(base=base)


def test_a_base_that_vectorises_by_itself() -> None:
    class SelfVectorised(Trace_ELBO):
        def loss_with_mutable_state(
            self, rng_key: Array, param_map: Params, *args: Any, **kwargs: Any
        ) -> dict[str, Any]:
            losses = jax.vmap(
                lambda key: Trace_ELBO().loss(key, param_map, *args, **kwargs),
            )(jax.random.split(rng_key))
            return {"loss": losses.mean(), "mutable_state": None}

    match = "got SelfVectorised, which runs model and guide inside a transformation of its own"
    with pytest.raises((ValueError, NotImplementedError), match=match):
        evaluate_shapes(TraceMMD_ELBO(base=SelfVectorised()), programs.vae())


def test_a_critic_that_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"Expected critic to be a module of flax\.linen"):
        TraceInfoMax_ELBO(nwj)


@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize(
    ("path", "parameter", "wrapped"),
    [("annealed", "step_size_z", "guide"), ("posterior", "step_size", "model")],
)
def test_parameters_that_nobody_declared(
    path: Path, parameter: str, wrapped: str, penalised: bool
) -> None:
    elbo = TraceHamiltonian_ELBO(path=path)
    with pytest.raises(
        ValueError,
        match=rf"parameters of its own, 'hamiltonian.{parameter}', that svi.init did not declare: "
        rf"use numpyro_backend.SVI, or pass elbo.wrap_{wrapped}\({wrapped}\) as the {wrapped}",
    ):
        evaluate_shapes(TraceMMD_ELBO(base=elbo) if penalised else elbo, programs.vae())


@pytest.mark.parametrize(
    ("path", "parameter", "shape"),
    [("annealed", "step_size_z", r"\(3, 2\)"), ("posterior", "step_size", r"\(3,\)")],
)
def test_parameters_of_another_shape(path: Path, parameter: str, shape: str) -> None:
    elbo = TraceHamiltonian_ELBO(3, path=path, per_step=True)
    case = programs.vae()
    params = {f"hamiltonian.{parameter}": jnp.array(0.1), "hamiltonian.beta_0": jnp.array(0.5)}
    with pytest.raises(
        ValueError,
        match=rf"'hamiltonian.{parameter}' of shape {shape}; the parameters hold one of shape "
        r"\(\): give this objective another name, or initialise",
    ):
        jax.eval_shape(lambda: elbo.loss(jax.random.key(0), params, *case[:2], *case.args))

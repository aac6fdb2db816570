"""What TraceHamiltonian_ELBO refuses beside tests/refusals.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation
from numpyro.infer.elbo import ELBO

from numpyro_backend import TraceHamiltonian_ELBO, TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import fixed
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import evaluate_shapes

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def replaced(*, guide: Any) -> Programs:
    return programs.vae()._replace(guide=guide)


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "point mass": (
        replaced(guide=AutoDelta(programs.vae().model)),
        {},
        "'z' is a point mass in the guide",
    ),
    "point mass of all latents": (
        replaced(guide=AutoLaplaceApproximation(programs.vae().model)),
        {},
        "'z' is a point mass in the guide",
    ),
    "no site": (programs.vae(), {"sites": []}, "draws no latent that could flow"),
    "observing guide": (
        replaced(guide=programs.vae().model),
        {},
        "the guide observes 'x', as one does that runs the model itself: use an AutoGuide",
    ),
    "sites of step_size": (
        programs.vae(),
        {"step_size": {"w": 0.1}},
        r"step_size of the sites \['z'\]; got \['w'\]",
    ),
    "shape of step_size": (
        programs.vae(),
        {"step_size": np.full(5, 0.1)},
        r"step_size of 'z' to broadcast to \(12, 2\); got shape \(5,\)",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_programs(case: Programs, settings: dict, match: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=match):
        evaluate_shapes(fixed(**settings), case)


def test_a_free_schedule_that_starts_at_no_temperature() -> None:
    with pytest.raises(ValueError, match="0 < beta_0 <= 1; got 0"):
        TraceHamiltonian_ELBO(beta_0=0.0, tempering="free")


def test_a_local_latent_under_a_subsampled_plate_flows() -> None:
    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 12, subsample_size=4) as index:
            z = numpyro.sample("z", dist.Normal(theta, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(x)[index, 0])

    def guide(x: Array) -> None:
        numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 12, subsample_size=4):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    evaluate_shapes(fixed(sites=["z"]), Programs(model, guide, (programs.data(),)))


@pytest.mark.parametrize("penalised", [False, True])
def test_parameters_that_nobody_declared(penalised: bool) -> None:
    elbo: ELBO = TraceHamiltonian_ELBO()
    with pytest.raises(
        ValueError,
        match=r"parameters of its own, 'hamiltonian.step_size', that svi.init did not declare: "
        r"use numpyro_backend.SVI, or pass elbo.wrap_model\(model\) as the model",
    ):
        evaluate_shapes(TraceMMD_ELBO(base=elbo) if penalised else elbo, programs.vae())


def test_parameters_of_another_shape() -> None:
    elbo = TraceHamiltonian_ELBO(3, per_step=True)
    case = programs.vae()
    params = {"hamiltonian.step_size": jnp.array(0.1), "hamiltonian.beta_0": jnp.array(0.5)}
    with pytest.raises(
        ValueError,
        match=r"'hamiltonian.step_size' of shape \(3,\); the parameters hold one of shape "
        r"\(\): give this objective another name, or initialise",
    ):
        jax.eval_shape(lambda: elbo.loss(jax.random.key(0), params, *case[:2], *case.args))

"""A step on a GPU is that of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam

from numpyro_backend import (
    SVI,
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from tests.numpyro_backend import programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")

OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "unbiased": TraceMMD_ELBO,
    "closed form": lambda: TraceMMD_ELBO(estimator="closed_form"),
    "InfoMax": lambda: TraceInfoMax_ELBO(SeparableCritic(3, 2, hidden=(8,))),
    "Hamiltonian": lambda: TraceHamiltonian_ELBO(2, 0.05),
    "MMD of Hamiltonian": lambda: TraceMMD_ELBO(base=TraceHamiltonian_ELBO(2, 0.05)),
}


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU that JAX can use")
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
def test_a_step_is_that_of_a_cpu(objective: Callable[[], ELBO]) -> None:
    case = programs.vae()

    def losses(device: jax.Device) -> list[float]:
        with jax.default_device(device):
            svi = SVI(case.model, case.guide, Adam(1e-2), loss=objective())
            state = svi.init(jax.random.key(0), *case.args)
            return list(
                svi.run(
                    jax.random.key(0), 3, *case.args, init_state=state, progress_bar=False
                ).losses
            )

    cpu = losses(jax.devices("cpu")[0])
    np.testing.assert_allclose(losses(jax.devices()[0]), cpu, rtol=1e-8)

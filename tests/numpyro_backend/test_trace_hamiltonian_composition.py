"""TraceHamiltonian_ELBO below a penalised objective."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend import TraceHamiltonian_ELBO, TraceMMD_ELBO
from numpyro_backend.rows import Rows
from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import assert_gradients
from tests.numpyro_backend.steps import initial, wrapped

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_alpha_leaves_the_trajectory_unchanged() -> None:
    """The flow follows the true posterior, whatever the penalised objective weights."""
    case = programs.vae(num=20)
    elbo = TraceHamiltonian_ELBO(4, 0.2)
    params = initial(wrapped(elbo, case))

    @jax.jit
    def ends_and_losses() -> list[tuple[Array, Array]]:
        steps = []
        for alpha in (0.0, 0.9):
            rows: list[Array] = []

            def keep(group: Rows, rows: list[Array] = rows) -> Array:
                rows.append(group.values)
                return group.values.sum() * 0

            objective = TraceMMD_ELBO(alpha, 5.0, base=elbo, regularizer=keep)
            loss = objective.loss(jax.random.key(0), params, *case[:2], *case.args)
            steps.append((rows[0], loss))
        guide_key = jax.random.split(jax.random.key(0))[1]
        refined = handlers.seed(elbo.refine(*case[:2]), guide_key)
        end = handlers.substitute(refined, params)(*case.args)["z"]
        return [*steps, (end, steps[0][1])]

    (first, loss), (second, other), (end, _) = ends_and_losses()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, end)
    assert loss != other


def test_gradients_of_a_penalised_objective() -> None:
    """Of the flow's parameters too, through the bound and through the rows of the penalty."""
    base = TraceHamiltonian_ELBO(2, 0.2, num_particles=2, vectorize_particles=False)
    grads = assert_gradients(programs.vae(num=6, batch=4), TraceMMD_ELBO(0.3, 5.0, base=base))
    assert {"hamiltonian.step_size", "hamiltonian.beta_0"} < grads.keys()

"""A regulariser of the user's, added to either penalised objective."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.infer import Trace_ELBO

from numpyro_backend.rows import Rows
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import concat, evaluate
from tests.numpyro_backend.steps import Params, initial, neutral

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def test_a_regularizer_sees_rows_and_data() -> None:
    seen: list[Rows] = []

    def regularizer(rows: Rows) -> Array:
        seen.append(rows)
        return 2.0 * rows.total * rows.values.mean()

    def guide(x: Array) -> None:
        with numpyro.plate("data", 20, subsample_size=5) as index:
            loc = jnp.asarray(x)[index, :2]
            numpyro.sample("z", dist.Normal(loc, 1e-6).to_event(1))

    model, _, args = programs.vae(num=20, batch=5)
    case = Programs(model, guide, args)
    base = Trace_ELBO(num_particles=3)
    objective = neutral(base=base, regularizer=regularizer, regularizer_weight=0.5)

    @jax.jit
    def step(params: Params) -> tuple[Array, Rows]:
        run = jax.random.key(0), params, case.model, case.guide, *case.args
        return objective.loss(*run) - base.loss(*run), seen[-1]

    value, rows = step(initial(case))
    assert rows.latents["z"].shape == (15, 2)
    assert rows.data["x"].shape == (15, 3)
    assert (rows.num_data, rows.total) == (5, 20)
    np.testing.assert_allclose(rows.data["x"][:, :2], rows.latents["z"], atol=1e-4)
    assert value == pytest.approx(20 * float(rows.values.mean()))


def test_must_give_a_scalar() -> None:
    objective = TraceInfoMax_ELBO(concat(), regularizer=lambda rows: rows.values)
    with pytest.raises(
        ValueError,
        match=r"regularizer\(rows\) to be a scalar; got shape \(12, 2\) for the rows of \['z'\]",
    ):
        evaluate(objective, programs.vae())

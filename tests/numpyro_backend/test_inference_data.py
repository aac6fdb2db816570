"""to_inference_data of programs that JAX cannot map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from tests.halves import Case
from tests.questions.asking import HALVES
from tests.questions.inference_data import run

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_programs_that_cannot_be_mapped() -> None:
    def callback(z: Array) -> Array:
        return jax.pure_callback(np.sign, jax.ShapeDtypeStruct((), z.dtype), z)

    def model() -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(callback(z), 1.0), obs=jnp.zeros(()))

    def guide() -> None:
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    case, half = Case(model, guide), HALVES["numpyro"]
    with pytest.raises(NotImplementedError) as error:
        run(half, case)
    assert "20 draws at once" in error.value.__notes__[-1]
    assert "chunk_size=1" in error.value.__notes__[-1]
    assert run(half, case, chunk_size=1).posterior["z"].shape == (1, 20)

"""What to_inference_data refuses, and what it says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from tests.numpyro_backend.inference_data_programs import normals, run
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestRefusals:
    def refused(self, case: Programs, match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            run(case, **settings)

    def test_settings(self) -> None:
        self.refused(normals(), "num_samples >= 1; got 0", num_samples=0)
        self.refused(normals(), "chunk_size >= 1; got 0", chunk_size=0)

    def test_nan(self) -> None:
        case = normals()

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                loc = jnp.where(jnp.arange(len(x)) < 2, jnp.nan, x)
                numpyro.sample("z", dist.Normal(loc, 1.0))

        self.refused(
            Programs(case.model, guide, case.args), r"nan in 40 of 240 draws of site 'z'.*guide"
        )
        x = case.args[0].copy()
        x[3] = np.nan
        self.refused(
            Programs(case.model, lambda x: case.guide(case.args[0]), (x,)),
            r"nan in 20 of 240 log likelihoods of site 'x'.*data",
        )

    def test_no_data(self) -> None:
        def model() -> None:
            numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.factor("factor", jnp.array(1.0))
            numpyro.deterministic("two", jnp.array(2.0))

        self.refused(Programs(model, model, ()), r"observes nothing.*\['z', 'two'\].*obs=")

    def test_latents_of_one_program_alone(self) -> None:
        case = normals()

        def guide(x: Array) -> None:
            case.guide(x)
            numpyro.sample("w", dist.Normal(0.0, 1.0))

        self.refused(Programs(case.model, guide, case.args), "'w', which is no latent of the model")

        def mixture(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                y = numpyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
                numpyro.sample("x", dist.Normal(y, 1.0), obs=x)

        self.refused(
            Programs(mixture, lambda x: None, case.args),
            "'y' is summed out in the model.*draw it in the guide",
        )

    @pytest.mark.parametrize(
        ("site", "plate", "match"),
        [
            ("draw", "data", "site 'draw' has the name of a dim of ArviZ's own: rename it"),
            ("x_dim_0", "data", "site 'x_dim_0' has the name of a dim of site 'x': rename it"),
            ("z", "chain", "plate 'chain' has the name of a dim of ArviZ's own: rename it"),
        ],
    )
    def test_names_of_arvizs(self, site: str, plate: str, match: str) -> None:
        def guide() -> Array:
            with numpyro.plate(plate, 2):
                return numpyro.sample(site, dist.Normal(0.0, 1.0))

        def model() -> None:
            with numpyro.plate(plate, 2):
                z = numpyro.sample(site, dist.Normal(0.0, 1.0))
                loc = z[:, None] * jnp.ones(3)
                numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=jnp.zeros((2, 3)))

        self.refused(Programs(model, guide, ()), match)

    def test_programs_that_cannot_be_mapped(self) -> None:
        def callback(z: Array) -> Array:
            return jax.pure_callback(np.sign, jax.ShapeDtypeStruct((), z.dtype), z)

        def model() -> None:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(callback(z), 1.0), obs=jnp.zeros(()))

        def guide() -> None:
            numpyro.sample("z", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, ())
        with pytest.raises(NotImplementedError) as error:
            run(case)
        assert "20 draws at once" in error.value.__notes__[-1]
        assert "chunk_size=1" in error.value.__notes__[-1]
        assert run(case, chunk_size=1).posterior["z"].shape == (1, 20)

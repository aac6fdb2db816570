"""to_inference_data: dims and coordinates, and which sites are variables of which group."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pyro_infovae.inference_data
from tests.numpyro_backend import programs
from tests.numpyro_backend.inference_data_programs import GROUPS, SAMPLE, dims, drawn, run
from tests.numpyro_backend.programs import Programs
from tests.pyro_infovae import programs as pyro_programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestDims:
    @pytest.mark.parametrize("program", ["nested", "sequences", "hierarchical"])
    def test_both_halves_have_the_same(self, program: str) -> None:
        ours = drawn(program)
        model, guide, args = getattr(pyro_programs, program)()
        theirs = pyro_infovae.inference_data.to_inference_data(model, guide, *args, num_samples=4)
        assert list(ours.groups()) == list(theirs.groups())
        for group in GROUPS:
            assert dims(ours, group) == dims(theirs, group)
            assert ours[group].coords.keys() == theirs[group].coords.keys()
            for name, values in ours[group].coords.items():
                np.testing.assert_array_equal(values, theirs[group].coords[name])

    def test_a_minibatch(self) -> None:
        """Its indices are the coordinates, its data are observed, in all draws and groups."""
        case, data = programs.vae(batch=5), drawn("minibatch")
        index = data.posterior.coords["data"].values
        assert len(set(index)) == 5
        for group in GROUPS:
            np.testing.assert_array_equal(data[group].coords["data"].values, index)
        np.testing.assert_array_equal(data.observed_data["x"].values, case.args[0][index])
        assert len(np.unique(data.posterior["z"].values)) == 4 * 5 * 2

    def test_deterministic_sites_and_dims_in_no_plate(self) -> None:
        def guide() -> None:
            numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0))
            numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            with numpyro.plate("data", 4):
                numpyro.sample("y", dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1))

        def model() -> None:
            numpyro.deterministic("constant", jnp.arange(4.0))
            numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0))
            z = numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            numpyro.deterministic("total", z.sum(-1))
            with numpyro.plate("data", 4):
                numpyro.deterministic("shared", jnp.arange(4.0))
                y = numpyro.sample("y", dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1))
                numpyro.deterministic("image", y[..., None] * jnp.ones(5))
                numpyro.sample("x", dist.Normal(y.sum(-1), 1.0), obs=jnp.zeros(4))

        data = run(Programs(model, guide, ()))
        expected = {
            "constant": (*SAMPLE, "constant_dim_0"),
            "w": (*SAMPLE, "w_dim_0"),
            "z": (*SAMPLE, "z_dim_0"),
            "total": SAMPLE,
            "shared": (*SAMPLE, "data"),
            "y": (*SAMPLE, "data", "y_dim_0"),
            "image": (*SAMPLE, "data", "image_dim_0", "image_dim_1"),
        }
        assert dims(data, "posterior") == dims(data, "prior") == expected
        draws = data.posterior
        assert list(draws.data_vars) == list(expected)
        assert (draws["constant"].values == np.arange(4)).all()
        np.testing.assert_allclose(draws["total"], draws["z"].sum("z_dim_0"))
        np.testing.assert_allclose(draws["image"][..., 2], draws["y"])

    def test_sites_of_other_kinds(self) -> None:
        """Auxiliary sites, factors and minibatches are no variables; a new latent is predicted."""

        def model() -> None:
            p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
            numpyro.factor("factor", -p)
            with numpyro.plate("data", 6, subsample_size=3):
                y = numpyro.sample("y", dist.Bernoulli(p))
                numpyro.sample("x", dist.Normal(y, 1.0), obs=jnp.zeros(()))
            numpyro.sample("new", dist.Normal(100.0, 1.0))

        def guide() -> None:
            u = numpyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            numpyro.sample("p", dist.Delta(jax.nn.sigmoid(u)))
            with numpyro.plate("data", 6, subsample_size=3):
                numpyro.sample("y", dist.Bernoulli(0.5))

        data = run(Programs(model, guide, ()))
        assert list(data.posterior.data_vars) == ["p", "y"]
        assert list(data.log_likelihood.data_vars) == ["x"]
        assert data.observed_data["x"].shape == (3,)
        for group in ("posterior_predictive", "prior_predictive"):
            assert list(data[group].data_vars) == ["x", "new"]
            assert (data[group]["new"] > 90).all()

"""to_inference_data: the draws of every group, from the guide, the model and the refined guide."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend.inference_data import to_inference_data
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.inference_data_programs import (
    GROUPS,
    NOISE,
    PROGRAMS,
    drawn,
    normal_log_prob,
    normals,
    run,
)
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestValues:
    def test_a_model_with_known_posterior_and_predictions(self) -> None:
        """Means and variances of every group, within five standard errors."""
        num_samples = 4000
        case = normals()
        data, x = run(case, num_samples=num_samples), case.args[0]
        expected = {
            ("posterior", "z"): (0.8 * x, 0.2),
            ("posterior_predictive", "x"): (0.8 * x, 0.2 + NOISE**2),
            ("prior", "z"): (0 * x, 1.0),
            ("prior_predictive", "x"): (0 * x, 1 + NOISE**2),
        }
        for (group, name), (mean, variance) in expected.items():
            draws = data[group][name].values[0]
            assert draws.shape == (num_samples, len(x))
            error = (variance / num_samples) ** 0.5
            assert np.abs(draws.mean(0) - mean).max() < 5 * error
            assert np.abs(draws.var(0) / variance - 1).max() < 5 * (2 / num_samples) ** 0.5
        np.testing.assert_array_equal(data.observed_data["x"].values, x)
        likelihoods = normal_log_prob(x, data.posterior["z"].values, NOISE)
        np.testing.assert_allclose(data.log_likelihood["x"].values, likelihoods)
        for latents, predictions in (
            (data.posterior["z"], data.posterior_predictive["x"]),
            (data.prior["z"], data.prior_predictive["x"]),
        ):
            residuals = (predictions - latents).values
            assert abs(residuals.var() / NOISE**2 - 1) < 5 * (2 / residuals.size) ** 0.5

    def test_covariates_are_seen_by_the_predictions(self) -> None:
        case = programs.covariate_prior()
        data = run(case, num_samples=4000)
        draws = data.prior_predictive["x"].values[0]
        assert np.abs(draws.mean(0) - 3 * case.args[0][:, 0]).max() < 5 * (2 / 4000) ** 0.5

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_log_likelihoods_sum_to_the_models(self, name: str) -> None:
        """Against the model run on one posterior draw after the other, without a scale."""
        (model, _, args), data = PROGRAMS[name](), drawn(name)
        for draw in range(4):
            chosen = data.posterior.isel(chain=0, draw=draw)
            given = {site: jnp.asarray(values) for site, values in chosen.data_vars.items()}
            if name == "minibatch":
                given["data"] = jnp.asarray(chosen.coords["data"])
            once = handlers.substitute(handlers.seed(model, 0), data=given)
            site = handlers.trace(once).get_trace(*args)["x"]
            total = float(data.log_likelihood["x"][0, draw].sum())
            np.testing.assert_allclose(total, site["fn"].log_prob(site["value"]).sum())


class TestRefine:
    def test_draws_are_those_of_the_refined_guide(self) -> None:
        """From a guide at 0 the flow moves half the way to the data, and more."""
        model, _, (x,) = normals()

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        refine = TraceHamiltonian_ELBO(5, 0.15, tempering="none", learn=False)
        data = run(Programs(model, guide, (x,)), num_samples=500, refine=refine)
        means = data.posterior["z"].values.mean((0, 1))
        assert 0.4 < (means @ x) / (x @ x) < 1.2
        assert data.attrs["refine"] == "TraceHamiltonian_ELBO"
        assert json.loads(data.attrs["refine_settings"])["num_steps"] == 5


class TestArguments:
    def test_draws_do_not_depend_on_their_chunks(self) -> None:
        case = normals()
        single, chunks = (run(case, num_samples=5, chunk_size=size) for size in (1, 3))
        for group in GROUPS:
            for name, values in single[group].data_vars.items():
                np.testing.assert_allclose(chunks[group][name].values, values.values)

    def test_parameters_rows_and_keyword_arguments_reach_the_programs(self) -> None:
        def program(*, x: Array, observe: bool) -> None:
            loc = numpyro.param("loc", jnp.zeros(()))
            with numpyro.plate("data", len(x), subsample_size=3) as index:
                z = numpyro.sample("z", dist.Normal(loc, 1.0))
                if observe:
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        rows = handlers.substitute(program, {"data": jnp.array([7, 2, 5])})
        model, guide = partial(rows, observe=True), partial(rows, observe=False)
        key, params = jax.random.key(0), {"loc": jnp.array(100.0)}
        data = to_inference_data(key, params, model, guide, x=jnp.arange(12.0), num_samples=3)
        assert (data.posterior["z"] > 90).all()
        for group in GROUPS:
            assert data[group].coords["data"].values.tolist() == [7, 2, 5]
        assert data.observed_data["x"].values.tolist() == [7.0, 2.0, 5.0]

"""to_inference_data: the draws of every group, from the guide, the model and the refined guide."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.inference_data import to_inference_data
from tests.pyro_infovae import programs
from tests.pyro_infovae.inference_data_programs import NOISE, normal_log_prob, normals, run, schools
from tests.pyro_infovae.param_store import assert_untouched
from tests.pyro_infovae.programs import Programs

CASES: dict[str, Callable[[], Programs]] = {
    "minibatch": lambda: programs.vae(batch=5),
    "nested": programs.nested,
    "masked": programs.sequences,
    "hierarchical": programs.hierarchical,
    "two latents": programs.two_latents,
    "discrete": programs.mixture,
    "schools": schools,
}


class TestValues:
    def test_a_model_with_known_posterior_and_predictions(self) -> None:
        """Means and variances of every group, within five standard errors."""
        num_samples = 4000
        case = normals()
        data, x = run(case, num_samples=num_samples), case.args[0].numpy()
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

    def test_log_likelihoods_are_those_of_the_posterior_draws(self) -> None:
        case = normals()
        data = run(case)
        expected = normal_log_prob(case.args[0].numpy(), data.posterior["z"].values, NOISE)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)

    def test_predictions_belong_to_their_draws(self) -> None:
        case = normals()
        data = run(case, num_samples=2000)
        for latents, predictions in (
            (data.posterior["z"], data.posterior_predictive["x"]),
            (data.prior["z"], data.prior_predictive["x"]),
        ):
            residuals = (predictions - latents).values
            # The variance of a variance of 12 · 2000 normals.
            assert abs(residuals.var() / NOISE**2 - 1) < 5 * (2 / residuals.size) ** 0.5

    def test_covariates_are_seen_by_the_predictions(self) -> None:
        case = programs.covariate_prior()
        x = case.args[0].numpy()
        data = run(case, num_samples=4000)
        draws = data.prior_predictive["x"].values[0]
        assert np.abs(draws.mean(0) - 3 * x[:, 0]).max() < 5 * (2 / 4000) ** 0.5

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("chunk_size", [None, 1, 3])
    def test_log_likelihoods_sum_to_the_models(self, name: str, chunk_size: int | None) -> None:
        """Against the model run on one posterior draw after the other, without a scale."""
        model, guide, args = CASES[name]()
        scaled = Programs(poutine.scale(model, scale=3.0), guide, args)
        data = run(scaled, num_samples=4, chunk_size=chunk_size)
        for draw in range(4):
            chosen = data.posterior.isel(chain=0, draw=draw)
            given = {
                name: torch.as_tensor(np.array(values))
                for name, values in {**chosen.data_vars, **chosen.coords}.items()
                if name in ("data", "y", "z", "z1", "z2", "outer", "theta", "mu", "tau", "eta")
            }
            trace = poutine.trace(poutine.condition(model, given)).get_trace(*args)
            data_sites = [
                site
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and name in ("x", "effect")
            ]
            expected = [
                (site["fn"].log_prob(site["value"]) * (1 if site["mask"] is None else site["mask"]))
                for site in data_sites
            ]
            total = sum(float(values[0, draw].sum()) for values in data.log_likelihood.values())
            np.testing.assert_allclose(total, float(sum(term.detach().sum() for term in expected)))


class TestRefine:
    def test_draws_are_those_of_the_refined_guide(self) -> None:
        """From a guide at 0 the flow moves half the way to the data, and more."""
        case = normals()

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

        refine = TraceHamiltonian_ELBO(5, 0.15, tempering="none")
        data = run(Programs(case.model, guide, case.args), num_samples=500, refine=refine)
        means = data.posterior["z"].values.mean((0, 1))
        slope = (means @ case.args[0].numpy()) / float(case.args[0] @ case.args[0])
        assert 0.4 < slope < 1.2
        assert data.attrs["refine"] == "TraceHamiltonian_ELBO"
        stored = json.loads(data.attrs["refine_settings"])
        assert stored["num_steps"] == 5
        np.testing.assert_allclose(stored["step_size"], 0.15)


class TestSideEffects:
    @pytest.mark.parametrize("refine", [None, TraceHamiltonian_ELBO(2, 0.1)])
    def test_the_param_store_is_untouched(self, refine: TraceHamiltonian_ELBO | None) -> None:
        case = programs.vae()
        assert_untouched(case, lambda: run(case, refine=refine))

    def test_keyword_arguments_reach_the_programs(self) -> None:
        case = normals()
        model: Callable[..., None] = lambda *, rows: case.model(rows)  # noqa: E731
        guide: Callable[..., None] = lambda *, rows: case.guide(rows)  # noqa: E731
        data = to_inference_data(model, guide, rows=case.args[0], num_samples=3)
        assert data.posterior["z"].shape == (1, 3, 12)

    def test_draws_differ_from_chunk_to_chunk(self) -> None:
        data = run(normals(), num_samples=7, chunk_size=3)
        assert len(np.unique(data.posterior["z"].values)) == 7 * 12

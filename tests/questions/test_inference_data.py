"""to_inference_data: the draws of every group, from guide, model and refined guide; their dims."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests.halves import Case
from tests.questions.asking import Asking, data, in_pyro, slow_in_numpyro
from tests.questions.inference_data import (
    EFFECTS,
    GROUPS,
    NOISE,
    PADDED,
    PROGRAMS,
    SAMPLE,
    SEQUENCES,
    X,
    az,
    dims,
    drawn,
    normals,
    run,
)
from tests.questions.programs import in_plate

QUICK = "nested", "discrete"
"""The programs that are compiled in a quick run."""


class TestValues:
    def test_a_model_with_known_posterior_and_predictions(self, half: Asking) -> None:
        """Means and variances of every group, within five standard errors."""
        num_samples = 4000
        found = run(half, normals(half), num_samples=num_samples)
        expected = {
            ("posterior", "z"): (0.8 * X, 0.2),
            ("posterior_predictive", "x"): (0.8 * X, 0.2 + NOISE**2),
            ("prior", "z"): (0 * X, 1.0),
            ("prior_predictive", "x"): (0 * X, 1 + NOISE**2),
        }
        for (group, name), (mean, variance) in expected.items():
            draws = found[group][name].values[0]
            assert draws.shape == (num_samples, len(X))
            error = (variance / num_samples) ** 0.5
            assert np.abs(draws.mean(0) - mean).max() < 5 * error
            assert np.abs(draws.var(0) / variance - 1).max() < 5 * (2 / num_samples) ** 0.5
        np.testing.assert_array_equal(found.observed_data["x"].values, X)
        likelihoods = norm.logpdf(X, found.posterior["z"].values, NOISE)
        np.testing.assert_allclose(found.log_likelihood["x"].values, likelihoods)
        for latents, predictions in (
            (found.posterior["z"], found.posterior_predictive["x"]),
            (found.prior["z"], found.prior_predictive["x"]),
        ):
            residuals = (predictions - latents).values
            # The variance of a variance of 12 · 4000 normals.
            assert abs(residuals.var() / NOISE**2 - 1) < 5 * (2 / residuals.size) ** 0.5

    @slow_in_numpyro
    def test_covariates_are_seen_by_the_predictions(self, half: Asking) -> None:
        loc = half.array(3 * X)

        def model(_: Any) -> None:
            z = half.sample("z", half.dist.Normal(loc, 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=0 * loc)

        guide = in_plate(half, 12, lambda _: half.sample("z", half.dist.Normal(loc, 1.0)))
        found = run(half, Case(in_plate(half, 12, model), guide), num_samples=4000)
        draws = found.prior_predictive["x"].values[0]
        assert np.abs(draws.mean(0) - 3 * X).max() < 5 * (2 / 4000) ** 0.5

    @pytest.mark.parametrize(
        ("half", "name"),
        [
            *(("pyro", name) for name in PROGRAMS),
            *(
                pytest.param("numpyro", name, marks=[] if name in QUICK else [pytest.mark.slow])
                for name in PROGRAMS
            ),
        ],
        indirect=["half"],
    )
    def test_log_likelihoods_are_those_of_the_posterior_draws(
        self, half: Asking, name: str
    ) -> None:
        """Written out, without a scale."""
        found, (_, _, expected) = drawn(half, name), PROGRAMS[name]
        (likelihood,) = found.log_likelihood.data_vars.values()
        for draw in range(4):
            total = float(likelihood[0, draw].sum())
            terms = expected(found.posterior.isel(chain=0, draw=draw))
            np.testing.assert_allclose(total, terms.sum())


class TestRefine:
    @slow_in_numpyro
    def test_draws_are_those_of_the_refined_guide(self, half: Asking) -> None:
        """From a guide at 0 the flow moves half the way to the data, and more."""
        normal = half.dist.Normal(half.array(np.zeros(12)), 1.0)
        case = normals(half)._replace(guide=in_plate(half, 12, lambda _: half.sample("z", normal)))
        refine = half.library.TraceHamiltonian_ELBO(
            5, 0.15, tempering="none", learn=False, path="posterior"
        )
        found = run(half, case, num_samples=500, refine=refine)
        means = found.posterior["z"].values.mean((0, 1))
        assert 0.4 < (means @ X) / (X @ X) < 1.2
        assert found.attrs["refine"] == "TraceHamiltonian_ELBO"
        stored = json.loads(found.attrs["refine_settings"])
        assert stored["num_steps"] == 5
        # Where it is no attribute it is a parameter.
        np.testing.assert_allclose(stored.get("step_size", 0.15), 0.15)


class TestArguments:
    def test_draws_differ_from_chunk_to_chunk(self, half: Asking) -> None:
        found = run(half, normals(half), num_samples=7, chunk_size=3)
        assert len(np.unique(found.posterior["z"].values)) == 7 * 12

    @slow_in_numpyro
    def test_parameters_rows_and_keyword_arguments_reach_the_programs(self, half: Asking) -> None:
        rows = np.array([7, 2, 5])

        def program(observe: bool) -> Any:
            def run(*, x: Any) -> None:
                loc = half.param("loc", 0.0)
                with half.plate("data", 12, index=rows) as index:
                    z = half.sample("z", half.dist.Normal(loc + 0 * x[index], 1.0))
                    if observe:
                        half.sample("x", half.dist.Normal(z, 1.0), obs=x[index])

            return run

        case, x = Case(program(True), program(False)), half.array(np.arange(12.0))
        found = run(half, case, params={"loc": 100.0}, num_samples=3, x=x)
        assert (found.posterior["z"] > 90).all()
        assert found.posterior["z"].shape == (1, 3, 3)
        for group in GROUPS:
            assert found[group].coords["data"].values.tolist() == [7, 2, 5]
        assert found.observed_data["x"].values.tolist() == [7.0, 2.0, 5.0]


class TestDims:
    def test_nested_plates(self, half: Asking) -> None:
        found = drawn(half, "nested")
        latents = {
            "outer": (*SAMPLE, "groups", "outer_dim_0"),
            "z": (*SAMPLE, "items", "groups", "z_dim_0"),
        }
        rows = ("items", "groups")
        assert dims(found, "posterior") == dims(found, "prior") == latents
        for group in ("posterior_predictive", "prior_predictive"):
            assert dims(found, group) == {"x": (*SAMPLE, *rows, "x_dim_0")}
        assert dims(found, "log_likelihood") == {"x": (*SAMPLE, *rows)}
        assert dims(found, "observed_data") == {"x": (*rows, "x_dim_0")}
        sizes = {"chain": 1, "draw": 4, "items": 4, "groups": 6, "x_dim_0": 3}
        assert dict(found.posterior_predictive.sizes) == sizes
        observed = found.observed_data["x"].values
        np.testing.assert_array_equal(observed, data(24).reshape(4, 6, 3))

    @slow_in_numpyro
    def test_a_minibatch(self, half: Asking) -> None:
        """Its indices are the coordinates, its data are observed, in all draws and groups."""
        found = drawn(half, "minibatch")
        index = found.posterior.coords["data"].values
        assert len(set(index)) == 5
        for group in GROUPS:
            np.testing.assert_array_equal(found[group].coords["data"].values, index)
        np.testing.assert_array_equal(found.observed_data["x"].values, data()[index])
        assert len(np.unique(found.posterior["z"].values)) == 4 * 5 * 2

    @slow_in_numpyro
    def test_the_eight_schools(self, half: Asking) -> None:
        """A deterministic site has the dims of its plates, though it was given no event_dim."""
        found = drawn(half, "schools")
        expected = {"mu": SAMPLE, "tau": SAMPLE, "eta": (*SAMPLE, "schools")}
        expected["theta"] = (*SAMPLE, "schools")
        assert dims(found, "posterior") == dims(found, "prior") == expected
        draws = found.posterior
        np.testing.assert_allclose(draws["theta"], draws["mu"] + draws["tau"] * draws["eta"])
        assert (draws["tau"] > 0).all()
        np.testing.assert_array_equal(found.observed_data["effect"].values, EFFECTS)

    @slow_in_numpyro
    def test_deterministic_sites_and_dims_in_no_plate(self, half: Asking) -> None:
        wide = half.array(np.zeros((4, 3)))

        def latents() -> tuple[Any, Any]:
            half.sample("w", half.dist.Normal(wide[0], 1.0))
            z = half.sample("z", half.dist.Normal(wide[:, 0], 1.0).to_event(1))
            return z, half.dist.Normal(wide, 1.0).to_event(1)

        def guide() -> None:
            _, normal = latents()
            with half.plate("data", 4):
                half.sample("y", normal)

        def model() -> None:
            half.deterministic("constant", half.array(np.arange(4.0)))
            z, normal = latents()
            half.deterministic("total", z.sum(-1))
            with half.plate("data", 4):
                half.deterministic("shared", half.array(np.arange(4.0)))
                y = half.sample("y", normal)
                half.deterministic("image", y[..., None] * half.array(np.ones(5)))
                half.sample("x", half.dist.Normal(y.sum(-1), 1.0), obs=wide[:, 0])

        found = run(half, Case(model, guide))
        expected = {
            "constant": (*SAMPLE, "constant_dim_0"),
            "w": (*SAMPLE, "w_dim_0"),
            "z": (*SAMPLE, "z_dim_0"),
            "total": SAMPLE,
            "shared": (*SAMPLE, "data"),
            "y": (*SAMPLE, "data", "y_dim_0"),
            "image": (*SAMPLE, "data", "image_dim_0", "image_dim_1"),
        }
        assert dims(found, "posterior") == dims(found, "prior") == expected
        draws = found.posterior
        assert list(draws.data_vars) == list(expected)
        assert (draws["constant"].values == np.arange(4)).all()
        np.testing.assert_allclose(draws["total"], draws["z"].sum("z_dim_0"))
        np.testing.assert_allclose(draws["image"][..., 2], draws["y"])

    @slow_in_numpyro
    def test_sites_of_other_kinds(self, half: Asking) -> None:
        """Auxiliary sites, factors and minibatches are no variables; a new latent is predicted."""
        zero = half.array(0.0)

        def model() -> None:
            p = half.sample("p", half.dist.Beta(zero + 1.0, 1.0))
            half.factor("factor", -p)
            with half.plate("data", 6, batch=3):
                y = half.sample("y", half.dist.Bernoulli(p))
                half.sample("x", half.dist.Normal(y, 1.0), obs=zero)
            half.sample("new", half.dist.Normal(zero + 100.0, 1.0))

        def guide() -> None:
            u = half.auxiliary("u", half.dist.Normal(zero, 1.0))
            half.sample("p", half.dist.Delta(1 / (1 + half.xp.exp(-u))))
            with half.plate("data", 6, batch=3):
                half.sample("y", half.dist.Bernoulli(zero + 0.5))

        found = run(half, Case(model, guide))
        assert list(found.posterior.data_vars) == ["p", "y"]
        assert list(found.log_likelihood.data_vars) == ["x"]
        assert found.observed_data["x"].shape == (3,)
        for group in ("posterior_predictive", "prior_predictive"):
            assert list(found[group].data_vars) == ["x", "new"]
            assert found[group]["new"].dims == SAMPLE
            assert (found[group]["new"] > 90).all()


class TestMaskedRows:
    mask = np.random.default_rng(0).permutation([True] * 7 + [False] * 5)

    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
    def test_they_are_left_out(self, half: Asking) -> None:
        """Neither does arviz.loo count them."""
        found, x = run(half, normals(half, mask=self.mask), num_samples=500), X[self.mask]
        for group in GROUPS[1:3]:
            assert found[group]["x"].dims == (*SAMPLE, "x_row")
            assert found[group]["x"].shape == (1, 500, 7)
        row_ids = found.log_likelihood.coords["x_row"].values
        assert row_ids.tolist() == np.flatnonzero(self.mask).tolist()
        np.testing.assert_array_equal(found.observed_data["x"].values, x)
        latents = found.posterior["z"].values[..., self.mask]
        expected = norm.logpdf(x, latents, NOISE)
        np.testing.assert_allclose(found.log_likelihood["x"].values, expected)
        reference = az.from_dict(posterior={"z": latents}, log_likelihood={"x": expected})
        for statistic in ("elpd_loo", "se", "p_loo", "n_data_points"):
            np.testing.assert_allclose(az.loo(found)[statistic], az.loo(reference)[statistic])

    @slow_in_numpyro
    def test_ragged_rows_know_their_place(self, half: Asking) -> None:
        """Of plates (time: 5, data: 4), by their lengths 5, 3, 1, 4."""
        found = drawn(half, "sequences")
        time, datum = np.divmod(found.log_likelihood.coords["x_row"].values, 4)
        places = zip(*np.nonzero(~PADDED), strict=True)
        assert sorted(zip(time, datum, strict=True)) == sorted(places)
        np.testing.assert_array_equal(found.observed_data["x"].values, SEQUENCES[time, datum])

    @in_pyro
    def test_of_a_minibatch_they_are_places_in_the_data(self, half: Asking) -> None:
        x = half.array([1.0, np.nan, 3.0])
        mask = np.array([True, False, True])

        def program(observe: bool) -> Any:
            def run() -> None:
                with half.plate("data", 12, index=np.array([7, 2, 5])):
                    z = half.sample("z", half.dist.Normal(half.array(np.zeros(3)), 1.0))
                    if observe:
                        likelihood = half.dist.Normal(z, 1.0).mask(half.array(mask))
                        half.sample("x", likelihood, obs=x)

            return run

        found = run(half, Case(program(True), program(False)))
        assert found.observed_data.coords["x_row"].values.tolist() == [7, 5]
        assert found.observed_data["x"].values.tolist() == [1.0, 3.0]

    @slow_in_numpyro
    def test_masks_of_some_draws_or_of_all_rows(self, half: Asking) -> None:
        zeros = half.array(np.zeros(3))

        def model() -> None:
            with half.plate("data", 3):
                z = half.sample("z", half.dist.Normal(zeros, 1.0))
                with half.handlers.mask(mask=z > 0):
                    half.sample("x", half.dist.Normal(zeros, 1.0), obs=zeros)
            with half.handlers.mask(mask=False):
                half.sample("other", half.dist.Normal(zeros[0], 1.0), obs=zeros[0] + 1)

        guide = in_plate(half, 3, lambda _: half.sample("z", half.dist.Normal(zeros, 1.0)))
        found = run(half, Case(model, guide), num_samples=50)
        expected = (found.posterior["z"].values > 0) * norm.logpdf(0.0)
        np.testing.assert_allclose(found.log_likelihood["x"].values, expected)
        for group in ("posterior_predictive", "log_likelihood", "observed_data"):
            assert list(found[group].data_vars) == ["x"]

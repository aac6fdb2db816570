"""to_inference_data: what ArviZ makes of a model and its guide."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae.inference_data import to_inference_data
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz", exc_type=ImportError)
    import matplotlib.pyplot as plt

GROUPS = [
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
]


def run(case: Programs, **settings: Any) -> Any:
    settings = {"num_samples": 20, **settings}
    return to_inference_data(case.model, case.guide, *case.args, **settings)


def dims(data: Any, group: str) -> dict[str, tuple[str, ...]]:
    return {name: values.dims for name, values in data[group].data_vars.items()}


def schools() -> Programs:
    """Eight schools, not centred: a latent per school and a deterministic effect."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("effect", dist.Normal(theta, errors), obs=effects)

    return Programs(model, AutoNormal(model), ())


NOISE = 0.5


def normals(mask: Tensor | None = None) -> Programs:
    """z_i ~ N(0, 1), x_i ~ N(z_i, 0.5²), and the posterior N(0.8 x_i, 0.2) as the guide."""
    x = programs.data()[:, 0]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=True if mask is None else mask):
                pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    return Programs(model, guide, (x,))


def normal_log_prob(x: np.ndarray, loc: np.ndarray, scale: float) -> np.ndarray:
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


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


class TestDims:
    @pytest.mark.parametrize("chunk_size", [None, 1])
    def test_nested_plates(self, chunk_size: int | None) -> None:
        data = run(programs.nested(), chunk_size=chunk_size)
        sample = ("chain", "draw")
        latents = {
            "outer": (*sample, "groups", "outer_dim_0"),
            "z": (*sample, "items", "groups", "z_dim_0"),
        }
        rows = ("items", "groups")
        assert dims(data, "posterior") == dims(data, "prior") == latents
        for group in ("posterior_predictive", "prior_predictive"):
            assert dims(data, group) == {"x": (*sample, *rows, "x_dim_0")}
        assert dims(data, "log_likelihood") == {"x": (*sample, *rows)}
        assert dims(data, "observed_data") == {"x": (*rows, "x_dim_0")}
        sizes = {"chain": 1, "draw": 20, "items": 4, "groups": 6, "x_dim_0": 3}
        assert dict(data.posterior_predictive.sizes) == sizes
        torch.testing.assert_close(
            torch.as_tensor(data.observed_data["x"].values), programs.nested().args[0]
        )

    def test_a_minibatch(self) -> None:
        """Its indices are the coordinates, its data are observed, in all draws and groups."""
        case = programs.vae(batch=5)
        data = run(case, chunk_size=7)
        index = data.posterior.coords["data"].values
        assert len(set(index)) == 5
        for group in GROUPS:
            np.testing.assert_array_equal(data[group].coords["data"].values, index)
        np.testing.assert_array_equal(data.observed_data["x"].values, case.args[0].numpy()[index])

    def test_given_rows(self) -> None:
        rows = torch.tensor([7, 2, 5])

        def program(x: Tensor) -> None:
            with pyro.plate("data", 12, subsample=rows) as index:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if x is not None:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        x = programs.data()[:, 0]
        data = to_inference_data(program, lambda x: program(None), x, num_samples=3)
        for group in GROUPS:
            assert data[group].coords["data"].values.tolist() == [7, 2, 5]

    def test_the_eight_schools(self) -> None:
        """A deterministic site has the dims of its plates, though it was given no event_dim."""
        data = run(schools())
        sample = ("chain", "draw")
        expected = {"mu": sample, "tau": sample, "eta": (*sample, "schools")}
        expected["theta"] = (*sample, "schools")
        assert dims(data, "posterior") == dims(data, "prior") == expected
        draws = data.posterior
        np.testing.assert_allclose(draws["theta"], draws["mu"] + draws["tau"] * draws["eta"])
        assert (draws["tau"] > 0).all()

    def test_deterministic_sites(self) -> None:
        def model() -> None:
            pyro.deterministic("constant", torch.arange(4.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.deterministic("total", z.sum(-1))
            with pyro.plate("data", 4):
                pyro.deterministic("shared", torch.arange(4.0))
                y = pyro.sample("y", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))
                pyro.deterministic("image", y.unsqueeze(-1) * torch.ones(5))
                pyro.deterministic("square", y.unsqueeze(-1) * torch.ones(4), event_dim=2)
                pyro.sample("x", dist.Normal(y.sum(-1), 1.0), obs=torch.zeros(4))

        data = run(Programs(model, AutoNormal(model), ()))
        sample = ("chain", "draw")
        assert (
            dims(data, "posterior")
            == dims(data, "prior")
            == {
                "constant": (*sample, "constant_dim_0"),
                "z": (*sample, "z_dim_0"),
                "total": sample,
                "shared": (*sample, "data"),
                "y": (*sample, "data", "y_dim_0"),
                "image": (*sample, "data", "image_dim_0", "image_dim_1"),
                "square": (*sample, "data", "square_dim_0", "square_dim_1"),
            }
        )
        draws = data.posterior
        assert (draws["constant"].values == np.arange(4)).all()
        np.testing.assert_allclose(draws["total"], draws["z"].sum("z_dim_0"))
        np.testing.assert_allclose(draws["image"][..., 2], draws["y"])

    def test_batch_dims_in_no_plate(self) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))

        data = run(Programs(model, AutoMultivariateNormal(model), ()), num_samples=3)
        assert dims(data, "posterior") == {"z": ("chain", "draw", "z_dim_0")}
        assert dims(data, "log_likelihood") == {"x": ("chain", "draw", "x_dim_0")}

    def test_sites_of_other_kinds(self) -> None:
        """Auxiliary sites, factors and minibatches are no variables; the guide's are not needed."""

        def model() -> None:
            p = pyro.sample("p", dist.Beta(1.0, 1.0))
            pyro.factor("factor", -p)
            with pyro.plate("data", 6, subsample_size=3):
                y = pyro.sample("y", dist.Bernoulli(p))
                pyro.sample("x", dist.Normal(y, 1.0), obs=torch.zeros(()))

        def guide() -> None:
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("p", dist.Delta(u.sigmoid()))
            with pyro.plate("data", 6, subsample_size=3):
                pyro.sample("y", dist.Bernoulli(0.5))

        data = run(Programs(model, guide, ()))
        assert list(data.posterior.data_vars) == ["p", "y"]
        assert list(data.log_likelihood.data_vars) == ["x"]
        assert data.observed_data["x"].shape == (3,)

    @pytest.mark.parametrize("auto", [AutoNormal, AutoNormalMessenger, AutoDelta])
    def test_guides_of_pyros(self, auto: Any) -> None:
        """One that runs the model itself leaves the data to be predicted, too."""
        case = normals()
        data = run(Programs(case.model, auto(case.model), case.args))
        assert list(data.posterior.data_vars) == ["z"]
        predictions = data.posterior_predictive["x"].values
        assert len(np.unique(predictions)) == predictions.size

    def test_data_observed_in_part(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=TestMaskedRows.mask)

        data = run(Programs(model, AutoNormal(model), normals().args))
        assert dims(data, "log_likelihood") == {"x_observed": ("chain", "draw", "x_observed_row")}
        assert list(data.posterior.data_vars) == ["x_unobserved", "x"]

    def test_sequential_plates_are_no_dims(self) -> None:
        def program(observe: bool) -> None:
            for i in pyro.plate("data", 2):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                if observe:
                    pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

        data = run(Programs(lambda: program(True), lambda: program(False), ()))
        assert dims(data, "log_likelihood") == {f"x_{i}": ("chain", "draw") for i in range(2)}

    def test_latents_that_only_the_model_draws_are_predictions(self) -> None:
        case = normals()

        def model(x: Tensor) -> None:
            case.model(x)
            pyro.sample("new", dist.Normal(100.0, 1.0))

        data = run(Programs(model, case.guide, case.args))
        assert list(data.posterior.data_vars) == ["z"]
        for group in ("posterior_predictive", "prior_predictive"):
            assert list(data[group].data_vars) == ["x", "new"]
            assert data[group]["new"].dims == ("chain", "draw")
            assert (data[group]["new"] > 90).all()
        assert list(data.log_likelihood.data_vars) == ["x"]


class TestMaskedRows:
    mask = torch.tensor([True] * 7 + [False] * 5)[torch.randperm(12)]

    def test_they_are_left_out(self) -> None:
        case = normals(self.mask)
        data, x = run(case), case.args[0].numpy()
        kept = np.flatnonzero(self.mask.numpy())
        for group in GROUPS[1:3]:
            assert data[group]["x"].dims == ("chain", "draw", "x_row")
            assert data[group]["x"].shape == (1, 20, 7)
        assert data.log_likelihood.coords["x_row"].values.tolist() == kept.tolist()
        np.testing.assert_array_equal(data.observed_data["x"].values, x[kept])
        latents = data.posterior["z"].values[..., kept]
        expected = normal_log_prob(x[kept], latents, NOISE)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)

    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
    def test_loo_does_not_count_them(self) -> None:
        data = run(normals(self.mask), num_samples=500)
        x = normals().args[0].numpy()[self.mask.numpy()]
        latents = data.posterior["z"].values[..., self.mask.numpy()]
        expected = az.loo(
            az.from_dict(
                posterior={"z": latents},
                log_likelihood={"x": normal_log_prob(x, latents, NOISE)},
            )
        )
        result = az.loo(data)
        assert result.n_data_points == 7
        for statistic in ("elpd_loo", "se", "p_loo"):
            np.testing.assert_allclose(result[statistic], expected[statistic])

    def test_ragged_rows_know_their_place(self) -> None:
        """Of plates (time: 5, data: 4), by their lengths 5, 3, 1, 4."""
        data = run(programs.sequences())
        places = data.log_likelihood.coords["x_row"].values
        time, datum = np.divmod(places, 4)
        assert sorted(zip(datum, time, strict=True)) == [
            (i, t) for i, length in enumerate([5, 3, 1, 4]) for t in range(length)
        ]
        x = programs.sequences().args[0].numpy()
        np.testing.assert_array_equal(data.observed_data["x"].values, x[time, datum])

    def test_of_a_minibatch_they_are_places_in_the_data(self) -> None:
        rows = torch.tensor([7, 2, 5])

        def program(observe: bool) -> None:
            with pyro.plate("data", 12, subsample=rows):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if observe:
                    likelihood = dist.Normal(z, 1.0).mask(torch.tensor([True, False, True]))
                    pyro.sample("x", likelihood, obs=torch.tensor([1.0, torch.nan, 3.0]))

        data = run(Programs(lambda: program(True), lambda: program(False), ()))
        assert data.observed_data.coords["x_row"].values.tolist() == [7, 5]
        assert data.observed_data["x"].values.tolist() == [1.0, 3.0]

    def test_rows_masked_in_some_draws_have_no_likelihood_in_those(self) -> None:
        def model() -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with poutine.mask(mask=z > 0):
                    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3))

        data = run(Programs(model, AutoNormal(model), ()), num_samples=50)
        expected = (data.posterior["z"].values > 0) * normal_log_prob(0.0, 0.0, 1.0)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)

    def test_sites_masked_altogether_are_left_out(self) -> None:
        case = normals()

        def model(x: Tensor) -> None:
            case.model(x)
            with poutine.mask(mask=False):
                pyro.sample("other", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

        data = run(Programs(model, case.guide, case.args))
        for group in ("posterior_predictive", "log_likelihood", "observed_data"):
            assert list(data[group].data_vars) == ["x"]


class TestArviz:
    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
    def test_summaries_plots_and_files(self, tmp_path: Path) -> None:
        data = run(schools(), num_samples=200, objective=TraceMMD_ELBO())
        summary = az.summary(data, var_names=["mu", "theta"], kind="stats")
        assert list(summary.index) == ["mu", *(f"theta[{i}]" for i in range(8))]
        np.testing.assert_allclose(summary["mean"]["mu"], data.posterior["mu"].mean(), atol=1e-3)
        assert az.loo(data).n_data_points == 8
        plt.switch_backend("agg")
        az.plot_ppc(data, num_pp_samples=5)
        plt.close("all")
        data.to_netcdf(str(tmp_path / "schools.nc"))
        loaded = az.from_netcdf(str(tmp_path / "schools.nc"))
        assert loaded.attrs["objective"] == "TraceMMD_ELBO"
        for group in GROUPS:
            for name, values in data[group].data_vars.items():
                np.testing.assert_array_equal(loaded[group][name].values, values.values)

    def test_the_objective_is_named(self) -> None:
        settings = {"alpha": 0.3, "lambd": 10.0, "estimator": "biased"}
        data = run(normals(), objective=TraceMMD_ELBO(**settings))
        assert data.attrs["objective"] == "TraceMMD_ELBO"
        stored = json.loads(data.attrs["objective_settings"])
        assert settings.items() <= stored.items()
        assert "refine" not in data.attrs
        assert "objective" not in run(normals(), objective=None).attrs

    def test_from_dict_as_of_arviz_1_by_a_stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The signature, and what it does with its arguments, are those of arviz-base 1.0."""

        def from_dict(
            data: dict[str, dict[str, np.ndarray]],
            *,
            name: str | None = None,
            sample_dims: list[str] | None = None,
            save_warmup: bool | None = None,
            index_origin: int | None = None,
            coords: dict[str, Any] | None = None,
            dims: dict[str, list[str]] | None = None,
            pred_dims: dict[str, list[str]] | None = None,
            pred_coords: dict[str, Any] | None = None,
            check_conventions: bool = True,
            attrs: dict[str, dict[str, Any]] | None = None,
        ) -> SimpleNamespace:
            assert coords is not None
            assert dims is not None
            assert attrs is not None
            assert attrs.keys() <= {*data, "/"}
            named = {}
            for group, values in data.items():
                named[group] = {}
                for site, value in values.items():
                    all_dims = ([] if "data" in group else ["chain", "draw"]) + dims[site]
                    if group == "log_likelihood":
                        all_dims = all_dims[: value.ndim]
                    named[group][site] = dict(zip(all_dims, value.shape, strict=True))
            return SimpleNamespace(groups=named, coords=coords, attrs=attrs["/"])

        monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(from_dict=from_dict))
        tree = run(programs.vae(batch=5), objective=TraceMMD_ELBO())
        drawn = {"chain": 1, "draw": 20, "data": 5}
        predicted = {"x": {**drawn, "x_dim_0": 3}}
        assert tree.groups == {
            "posterior": {"z": {**drawn, "z_dim_0": 2}},
            "posterior_predictive": predicted,
            "log_likelihood": {"x": drawn},
            "prior": {"z": {**drawn, "z_dim_0": 2}},
            "prior_predictive": predicted,
            "observed_data": {"x": {"data": 5, "x_dim_0": 3}},
        }
        assert len(tree.coords["data"]) == 5
        assert tree.attrs["objective"] == "TraceMMD_ELBO"

    def test_arviz_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "arviz", None)
        with pytest.raises(ModuleNotFoundError, match=r"needs ArviZ: pip install pyro-infovae\["):
            run(normals())

    def test_arviz_is_broken(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """What it lacks is what the error names."""
        (tmp_path / "arviz.py").write_text("import nowhere_to_be_found")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "arviz")
        with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
            run(normals())


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
        run(case, refine=refine)
        assert not list(pyro.get_param_store().keys())

    def test_keyword_arguments_reach_the_programs(self) -> None:
        case = normals()
        model: Callable[..., None] = lambda *, rows: case.model(rows)  # noqa: E731
        guide: Callable[..., None] = lambda *, rows: case.guide(rows)  # noqa: E731
        data = to_inference_data(model, guide, rows=case.args[0], num_samples=3)
        assert data.posterior["z"].shape == (1, 3, 12)

    def test_draws_differ_from_chunk_to_chunk(self) -> None:
        data = run(normals(), num_samples=7, chunk_size=3)
        assert len(np.unique(data.posterior["z"].values)) == 7 * 12


class TestRefusals:
    def refused(self, case: Programs, match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            run(case, **settings)

    def test_settings(self) -> None:
        self.refused(normals(), "num_samples >= 1; got 0", num_samples=0)
        self.refused(normals(), "chunk_size >= 1; got 0", chunk_size=0)

    def test_nan(self) -> None:
        case = normals()

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = torch.where(torch.arange(len(x)) < 2, torch.nan, x)
                pyro.sample("z", dist.Normal(loc, 1.0))

        self.refused(
            Programs(case.model, guide, case.args), r"nan in 40 of 240 draws of site 'z'.*guide"
        )
        x = case.args[0].clone()
        x[3] = torch.nan
        self.refused(
            Programs(case.model, lambda x: case.guide(case.args[0]), (x,)),
            r"nan in 20 of 240 log likelihoods of site 'x'.*data",
        )

    def test_no_data(self) -> None:
        def model() -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("factor", torch.tensor(1.0))
            pyro.deterministic("two", torch.tensor(2.0))

        self.refused(Programs(model, model, ()), r"observes nothing.*\['z', 'two'\].*obs=")

    def test_latents_of_one_program_alone(self) -> None:
        case = normals()

        def guide(x: Tensor) -> None:
            case.guide(x)
            pyro.sample("w", dist.Normal(0.0, 1.0))

        self.refused(Programs(case.model, guide, case.args), "'w', which is no latent of the model")
        mixture = programs.mixture(enumerate_in_model=True)
        mixture = Programs(config_enumerate(mixture.model), mixture.guide, mixture.args)
        self.refused(mixture, "'y' is summed out in the model.*draw it in the guide")

    @pytest.mark.parametrize(
        ("site", "plate", "match"),
        [
            ("draw", "data", "site 'draw' has the name of a dim of ArviZ's own: rename it"),
            ("x_dim_0", "data", "site 'x_dim_0' has the name of a dim of site 'x': rename it"),
            ("z", "chain", "plate 'chain' has the name of a dim of ArviZ's own: rename it"),
        ],
    )
    def test_names_of_arvizs(self, site: str, plate: str, match: str) -> None:
        def model() -> None:
            with pyro.plate(plate, 2):
                z = pyro.sample(site, dist.Normal(0.0, 1.0))
                loc = z.unsqueeze(-1) * torch.ones(3)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.zeros(2, 3))

        self.refused(Programs(model, AutoNormal(model), ()), match)

    def test_programs_that_cannot_be_vectorised(self) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(1.0 if z > 0 else -1.0, 1.0), obs=torch.tensor(0.0))

        case = Programs(model, AutoNormal(model), ())
        with pytest.raises(RuntimeError) as error:
            run(case)
        assert "20 draws at once" in error.value.__notes__[0]
        assert "chunk_size=1" in error.value.__notes__[0]
        assert run(case, chunk_size=1).posterior["z"].shape == (1, 20)

"""to_inference_data: dims and coordinates, and which sites are variables of which group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import Tensor

from pyro_infovae.inference_data import to_inference_data
from tests.pyro_infovae import programs
from tests.pyro_infovae.inference_data_programs import GROUPS, dims, normals, run, schools
from tests.pyro_infovae.programs import Programs


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
                observed = torch.arange(len(x)) < 7
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=observed)

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

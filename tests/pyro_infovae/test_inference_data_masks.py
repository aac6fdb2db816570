"""to_inference_data: masked rows are no data."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from tests.pyro_infovae import programs
from tests.pyro_infovae.inference_data_programs import (
    GROUPS,
    NOISE,
    az,
    normal_log_prob,
    normals,
    run,
)
from tests.pyro_infovae.programs import Programs


class TestMaskedRows:
    mask = torch.randperm(12, generator=torch.Generator().manual_seed(0)) < 7

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

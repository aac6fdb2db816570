"""to_inference_data: masked rows are no data."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from tests.numpyro_backend import programs
from tests.numpyro_backend.inference_data_programs import (
    GROUPS,
    NOISE,
    SAMPLE,
    az,
    drawn,
    normal_log_prob,
    normals,
    run,
)
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestMaskedRows:
    mask = np.random.default_rng(0).permutation([True] * 7 + [False] * 5)

    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
    def test_they_are_left_out(self) -> None:
        """Neither does arviz.loo count them."""
        case = normals(jnp.asarray(self.mask))
        data, x = run(case, num_samples=500), case.args[0][self.mask]
        for group in GROUPS[1:3]:
            assert data[group]["x"].dims == (*SAMPLE, "x_row")
        row_ids = data.log_likelihood.coords["x_row"].values
        assert row_ids.tolist() == np.flatnonzero(self.mask).tolist()
        np.testing.assert_array_equal(data.observed_data["x"].values, x)
        latents = data.posterior["z"].values[..., self.mask]
        expected = normal_log_prob(x, latents, NOISE)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)
        reference = az.from_dict(posterior={"z": latents}, log_likelihood={"x": expected})
        for statistic in ("elpd_loo", "se", "p_loo", "n_data_points"):
            np.testing.assert_allclose(az.loo(data)[statistic], az.loo(reference)[statistic])

    def test_ragged_rows_know_their_place(self) -> None:
        """Of plates (time: 5, data: 4), by their lengths 5, 3, 1, 4."""
        data = drawn("sequences")
        time, datum = np.divmod(data.log_likelihood.coords["x_row"].values, 4)
        assert sorted(zip(datum, time, strict=True)) == [
            (i, t) for i, length in enumerate([5, 3, 1, 4]) for t in range(length)
        ]
        x = programs.sequences().args[0]
        np.testing.assert_array_equal(data.observed_data["x"].values, x[time, datum])

    def test_masks_of_some_draws_or_of_all_rows(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                with handlers.mask(mask=z > 0):
                    numpyro.sample("x", dist.Normal(0.0, 1.0), obs=jnp.zeros(3))
            with handlers.mask(mask=False):
                numpyro.sample("other", dist.Normal(0.0, 1.0), obs=jnp.ones(()))

        def guide() -> None:
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        data = run(Programs(model, guide, ()), num_samples=50)
        expected = (data.posterior["z"].values > 0) * normal_log_prob(0.0, 0.0, 1.0)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)
        for group in ("posterior_predictive", "log_likelihood", "observed_data"):
            assert list(data[group].data_vars) == ["x"]

"""to_inference_data of Pyro's own guides, plates and sites, with the param store left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.inference_data import to_inference_data
from tests.pyro_infovae import programs
from tests.pyro_infovae.param_store import assert_untouched
from tests.pyro_infovae.programs import Programs
from tests.questions.asking import HALVES
from tests.questions.inference_data import X, dims, normals


def run(case: Programs, **settings: Any) -> Any:
    settings = {"num_samples": 20, **settings}
    return to_inference_data(case.model, case.guide, *case.args, **settings)


def test_the_event_dims_that_a_deterministic_site_is_given() -> None:
    def model() -> None:
        with pyro.plate("data", 4):
            y = pyro.sample("y", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))
            pyro.deterministic("square", y.unsqueeze(-1) * torch.ones(4), event_dim=2)
            pyro.sample("x", dist.Normal(y.sum(-1), 1.0), obs=torch.zeros(4))

    data = run(Programs(model, AutoNormal(model), ()))
    assert data.posterior["square"].dims == (
        "chain",
        "draw",
        "data",
        "square_dim_0",
        "square_dim_1",
    )


@pytest.mark.parametrize("auto", [AutoNormal, AutoNormalMessenger, AutoDelta])
def test_guides_of_pyros(auto: Any) -> None:
    """One that runs the model itself leaves the data to be predicted, too."""
    model = normals(HALVES["pyro"]).model
    data = run(Programs(model, auto(model), ()))
    assert list(data.posterior.data_vars) == ["z"]
    predictions = data.posterior_predictive["x"].values
    assert len(np.unique(predictions)) == predictions.size


def test_data_observed_in_part() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            observed = torch.arange(len(x)) < 7
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=observed)

    data = run(Programs(model, AutoNormal(model), (torch.as_tensor(X),)))
    assert dims(data, "log_likelihood") == {"x_observed": ("chain", "draw", "x_observed_row")}
    assert list(data.posterior.data_vars) == ["x_unobserved", "x"]


def test_sequential_plates_are_no_dims() -> None:
    def program(observe: bool) -> None:
        for i in pyro.plate("data", 2):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            if observe:
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    data = run(Programs(lambda: program(True), lambda: program(False), ()))
    assert dims(data, "log_likelihood") == {f"x_{i}": ("chain", "draw") for i in range(2)}


@pytest.mark.parametrize("refine", [None, TraceHamiltonian_ELBO(2, 0.1)])
def test_the_param_store_is_untouched(refine: TraceHamiltonian_ELBO | None) -> None:
    case = programs.vae()
    assert_untouched(case, lambda: run(case, refine=refine))


def test_programs_that_cannot_be_vectorised() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(1.0 if z > 0 else -1.0, 1.0), obs=torch.tensor(0.0))

    case = Programs(model, AutoNormal(model), ())
    with pytest.raises(RuntimeError) as error:
        run(case)
    assert "20 draws at once" in error.value.__notes__[0]
    assert "chunk_size=1" in error.value.__notes__[0]
    assert run(case, chunk_size=1).posterior["z"].shape == (1, 20)

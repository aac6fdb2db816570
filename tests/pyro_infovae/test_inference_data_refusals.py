"""What to_inference_data refuses, and what it says."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from tests.pyro_infovae import programs
from tests.pyro_infovae.inference_data_programs import normals, run
from tests.pyro_infovae.programs import Programs


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

"""What log_evidence refuses, and what it says."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormalMessenger
from torch import Tensor

from pyro_infovae._diagnostics.evidence import log_evidence
from tests.pyro_infovae import programs
from tests.pyro_infovae.evidence_programs import linear_gaussian
from tests.pyro_infovae.programs import Programs


class TestRefusals:
    def refused(self, case: Programs, match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            log_evidence(case.model, case.guide, *case.args, **settings)

    def test_settings(self) -> None:
        case, _ = linear_gaussian()
        self.refused(case, "num_samples >= 2; got 1", num_samples=1)
        self.refused(case, "chunk_size >= 1; got 0", chunk_size=0)

    def test_a_subsampled_plate_below_a_global_latent(self) -> None:
        def model(x: Tensor) -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 12, subsample_size=4) as index:
                pyro.sample("x", dist.Normal(theta, 1.0), obs=x[index, 0])

        def guide(x: Tensor) -> None:
            pyro.sample("theta", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, (programs.data(),))
        self.refused(case, "plate 'data' is subsampled, but site 'theta' is outside.*whole plate")

    def test_a_sequential_minibatch(self) -> None:
        def model() -> None:
            for i in pyro.plate("data", 12, subsample_size=1):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

        def guide() -> None:
            for i in pyro.plate("data", 12, subsample_size=1):
                pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

        self.refused(Programs(model, guide, ()), "plate 'data' is subsampled, but it is sequential")

    def test_programs_without_importance_weights(self) -> None:
        case = programs.vae()
        self.refused(
            Programs(case.model, AutoDelta(case.model), case.args),
            "'z' is a point mass.*AutoNormal",
        )
        mixture = programs.mixture(enumerate_in_model=True)
        mixture = Programs(config_enumerate(mixture.model), mixture.guide, mixture.args)
        self.refused(mixture, "'y' is a latent of the model that the guide does not draw")

        def guide(x: Tensor) -> None:
            case.guide(x)
            pyro.sample("w", dist.Normal(0.0, 1.0))

        self.refused(Programs(case.model, guide, case.args), "'w', which is no latent of the model")
        messenger = AutoNormalMessenger(case.model)
        messenger(*case.args)
        self.refused(Programs(case.model, messenger, case.args), r"guide observes 'x'.*AutoGuide")

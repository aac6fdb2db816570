"""What TraceMMD_ELBO refuses beside tests/refusals.py."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs


def _bernoulli() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def _gamma() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), 1.0))

    return Programs(model, guide, (programs.data(),))


def _unsized() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(12), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    return Programs(model, guide, (programs.data(),))


REFUSED_SETTINGS = {
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        r"particle settings in base; got TraceMMD_ELBO\(base=..., num_particles=3.*Trace_ELBO\(",
    ),
    "compiled base": ({"base": JitTrace_ELBO()}, "runs model and guide in every step.*JitTrace"),
}

REFUSED_PROGRAMS: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "not in the guide": (
        programs.mixture(enumerate_in_model=True),
        {"sites": ["y"], "base": TraceEnum_ELBO(max_plate_nesting=1)},
        "'y', which the guide does not draw",
    ),
    "not reparameterised": (
        _bernoulli(),
        {"sites": ["y", "z"]},
        r"'y', which is not reparameterised \(Bernoulli\): leave it out of sites",
    ),
    "closed form": (
        _gamma(),
        {"estimator": "closed_form"},
        "diagonal normal at site 'z'; the guide has LogNormal.*use estimator='unbiased'",
    ),
    "closed form, mixture": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {"estimator": "closed_form", "base": TraceEnum_ELBO(max_plate_nesting=1)},
        "prior of 'z' is a mixture over a latent that the model sums out",
    ),
    "unsized plate": (_unsized(), {}, "Plate 'data' of site 'z' has no size"),
    "mixture prior": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {"alpha": 0.5, "base": TraceEnum_ELBO(max_plate_nesting=1)},
        "KL of 'z' cannot be weighted by 0.5: its prior depends on 'y'",
    ),
    "sequential": (
        Programs(
            programs.mixture().model,
            pyro.infer.config_enumerate(programs.mixture().guide, "sequential"),
            programs.mixture().args,
        ),
        {"base": TraceEnum_ELBO(max_plate_nesting=1)},
        "'y' is enumerated sequentially",
    ),
    "parallel draws": (
        Programs(
            programs.vae().model,
            pyro.infer.config_enumerate(
                programs.vae().guide, "parallel", num_samples=3, expand=True
            ),
            programs.vae().args,
        ),
        {"base": TraceEnum_ELBO(max_plate_nesting=1)},
        r"'z' is drawn several times in parallel \(num_samples\)",
    ),
}


@pytest.mark.parametrize(("settings", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
def test_settings(settings: dict, match: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=match):
        TraceMMD_ELBO(**settings)


@pytest.mark.parametrize(
    ("case", "settings", "match"), REFUSED_PROGRAMS.values(), ids=REFUSED_PROGRAMS
)
def test_programs(case: Programs, settings: dict, match: str) -> None:
    objective = TraceMMD_ELBO(**settings)
    with pytest.raises((ValueError, NotImplementedError), match=match):
        objective.loss_and_grads(case.model, case.guide, *case.args)


def test_one_density_for_several_latents_cannot_be_reweighted() -> None:
    model, _, args = programs.two_latents()
    guide = AutoMultivariateNormal(model)
    TraceMMD_ELBO(0.0).loss(model, guide, *args)
    with pytest.raises(NotImplementedError, match=r"KL of 'z1' cannot be weighted by 0.5: .*'_"):
        TraceMMD_ELBO(0.5).loss(model, guide, *args)

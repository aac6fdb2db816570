"""What Pyro's questions keep beside what both halves do: the param store, and Pyro's own guides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, diagnostics
from pyro_infovae.diagnostics import (
    aggregated_posterior,
    kl_by_dimension,
    mutual_information,
    simulation_based_calibration,
    summarise,
)
from tests.pyro_infovae import programs
from tests.pyro_infovae.param_store import assert_untouched
from tests.pyro_infovae.programs import Programs

SETTINGS: dict[str, dict[str, Any]] = {
    "active_units": {"num_samples": 4},
    "aggregated_posterior": {"num_samples": 4},
    "kl_by_dimension": {"num_samples": 4},
    "mmd_test": {},
    "mutual_information": {"num_steps": 5, "num_samples": 20},
    "simulation_based_calibration": {"num_samples": 4},
    "suggest_lambd": {},
    "summarise": {"num_samples": 4},
}


@pytest.mark.parametrize("question", SETTINGS)
def test_parameters_are_left_alone(question: str) -> None:
    """Those of a store that is empty, and those of one that is not."""
    model, guide, (x,) = programs.vae(num=20, batch=15)
    case = Programs(model, guide, (5 * x,))
    ask = getattr(diagnostics, question)
    assert_untouched(case, lambda: ask(*case[:2], *case.args, **SETTINGS[question]))


def test_a_critic_is_left_alone() -> None:
    case, critic = programs.vae(num=20, batch=15), ConcatCritic(3, 2, hidden=(8,))
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    mutual_information(*case[:2], *case.args, critic=critic, num_steps=5, num_samples=20)
    assert all(map(torch.equal, critic.parameters(), before))
    assert all(parameter.grad is None for parameter in critic.parameters())


class Recorder(nn.Module):
    """Keeps which data it was shown, in training and after it; copies share the record."""

    seen: dict[bool, list[float]]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))
        Recorder.seen = {True: [], False: []}

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        Recorder.seen[self.training].extend(x[:, 0].tolist())
        return self.weight * z[:, 0]


def test_training_and_evaluation_share_no_datum() -> None:
    """And masked data are in neither."""
    x, kept = torch.arange(100.0)[:, None], torch.arange(100) % 5 != 0

    def program(*, observe: bool) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("data", 100, 40) as index, pyro.poutine.mask(mask=kept[index]):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                if observe:
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

        return run

    settings = {"num_steps": 50, "num_samples": 500, "batch_size": 8, "held_out": 0.3}
    report = mutual_information(
        program(observe=True), program(observe=False), x, critic=Recorder(), **settings
    )
    trained, evaluated = (set(Recorder.seen[mode]) for mode in (True, False))
    assert not trained & evaluated
    assert trained | evaluated == set(torch.arange(100)[kept].tolist())
    assert report.num_data == len(evaluated) <= 30


def test_keyword_arguments_images_and_labels() -> None:
    """Images are observed flat, and may be missing; labels, of the same length, stay."""
    covariates, seen = torch.arange(20.0), []

    def model(*, images: Tensor, labels: Tensor) -> None:
        with pyro.plate("data", 20):
            z = pyro.sample("z", dist.Normal(labels, 1.0))
            fn = dist.Bernoulli(logits=z[:, None].expand(20, 4)).to_event(1)
            pyro.sample("x", fn, obs=images.reshape(20, -1))

    def guide(*, images: Tensor, labels: Tensor) -> None:
        seen.append(images)
        assert labels is covariates
        with pyro.plate("data", 20):
            pyro.sample("z", dist.Normal(images.mean((1, 2, 3)) + labels, 1.0))

    images = torch.full((20, 1, 2, 2), torch.nan, dtype=torch.float32)
    simulation_based_calibration(
        model, guide, images=images, labels=covariates, num_simulations=1, num_samples=3
    )
    assert len(seen) == 4
    assert all(x.shape == (20, 1, 2, 2) and x.dtype == torch.float32 for x in seen)
    assert set(seen[0].flatten().tolist()) == {0.0, 1.0}
    assert all(torch.equal(x, seen[0]) for x in seen)


@pytest.mark.parametrize("num_features", [1, 2])
def test_a_guide_that_draws_a_positive_latent_as_a_normal(num_features: int) -> None:
    """KL(LogNormal ‖ LogNormal) is that of the normals; a single feature is all there is."""
    locs = torch.tensor([[-2.0, 0.1], [-0.5, 0.0], [0.3, 0.4], [3.0, -0.2]])[:, :num_features]
    scales = torch.tensor([[0.3, 1.1], [0.6, 0.9], [1.5, 1.0], [0.5, 0.7]])[:, :num_features]

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.LogNormal(torch.zeros(num_features), 1.0).to_event(1))

    guide = AutoNormal(model)
    guide()
    store = pyro.get_param_store()
    store["AutoNormal.locs.z"], store["AutoNormal.scales.z"] = locs, scales
    normal = dist.Normal(torch.zeros(()), 1.0)
    expected = kl_divergence(dist.Normal(locs, scales), normal).sum(1)
    report = kl_by_dimension(model, guide, num_samples=500)
    assert (report.standard_error < 0.2).all(), "too few draws to tell"
    assert ((report.per_datum - expected).abs() < 4 * report.standard_error).all()
    if num_features == 1:
        torch.testing.assert_close(report.terms[:, 0], report.per_datum)
    else:
        assert "in another space" in report.unsplit["z"]


@pytest.mark.parametrize("question", [kl_by_dimension, aggregated_posterior])
def test_refuses_a_latent_that_the_model_sums_out(question: Callable[..., Any]) -> None:
    case = programs.mixture(learned_prior=True, enumerate_in_model=True)
    with pytest.raises(ValueError, match=r"not draw 'y', on which the prior of \['z'\] may"):
        question(*case[:2], *case.args)


def test_refuses_the_draws_of_a_flow() -> None:
    case = programs.vae()
    guide = TraceHamiltonian_ELBO(2, 0.1, learn=False).refine(case.model, case.guide)
    with pytest.raises(ValueError, match="draws 'z' as a point mass, which has no density"):
        kl_by_dimension(case.model, guide, *case.args)


def test_a_summary_where_the_model_cannot_be_vectorised() -> None:
    """It has a row that says so."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 10):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if z.dim() > 1:
                raise IndexError
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 10):
            pyro.sample("z", dist.Normal(x, 1.0))

    summary = summarise(model, guide, torch.randn(10))
    assert summary["log_evidence"].meaning.startswith(
        "not computed: IndexError log_evidence ran the programs with 1000 draws at once"
    )
    assert math.isfinite(summary["kl"].value)

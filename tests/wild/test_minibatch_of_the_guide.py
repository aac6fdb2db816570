"""A minibatch that the model is given, and an automatic guide that draws another."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_infovae import TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.critics import ConcatCritic

NUM = 20
INDEX = torch.tensor([3, 17, 5, 11])


def model(x: Tensor, index: Tensor) -> None:
    with pyro.plate("data", NUM, subsample=index):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(index)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=x[index])


def plates(x: Tensor, index: Tensor) -> pyro.plate:
    return pyro.plate("data", NUM, subsample=index, dim=-1)


@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
@pytest.mark.parametrize("name", ["mmd", "infomax"])
def test_is_warned_of_and_the_remedy_pairs_latents_with_their_data(name: str) -> None:
    objective = TraceMMD_ELBO() if name == "mmd" else TraceInfoMax_ELBO(ConcatCritic(1, 1))
    args = torch.linspace(-3.0, 3.0, NUM), INDEX
    remedied = AutoNormal(model, create_plates=plates)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Plate")
        objective.loss_and_grads(model, remedied, *args)
    touched = remedied.locs.z_unconstrained.grad.nonzero()[:, 0]
    assert touched.tolist() == sorted(INDEX.tolist())

    pyro.clear_param_store()
    with pytest.warns(UserWarning, match=r"^Plate 'data': the model is given its .*create_plates="):
        objective.loss_and_grads(model, AutoNormal(model), *args)


@pytest.mark.parametrize("index", [torch.arange(NUM), None])
def test_no_warning_where_the_guide_draws_none_or_the_model_is_given_none(
    index: Tensor | None,
) -> None:
    def of_all(x: Tensor) -> None:
        size = None if index is not None else 6
        with pyro.plate("data", NUM, subsample_size=size, subsample=index) as chosen:
            z = pyro.sample("z", dist.Normal(torch.zeros(len(chosen)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x[chosen])

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Plate")
        TraceMMD_ELBO().loss_and_grads(of_all, AutoNormal(of_all), torch.linspace(-3.0, 3.0, NUM))

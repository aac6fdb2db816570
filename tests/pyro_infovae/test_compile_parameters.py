"""CompiledSVI updates parameters and buffers as SVI does, by any optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from tests.pyro_infovae.compiled_steps import Net, adam, like_svi
from tests.pyro_infovae.programs import data, vae


@like_svi
def test_buffers_are_updated_once_a_step_and_follow_train_and_eval(svi: type) -> Any:
    x, net = data(8), Net(nn.BatchNorm1d(4), nn.Dropout(0.3))
    steps = svi(net.model, net.guide, adam(), TraceMMD_ELBO())
    tracked = net.encoder[1].num_batches_tracked
    losses = [steps.step(x) for _ in range(5)]
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert tracked == 5
    net.eval()
    losses += [steps.step(x) for _ in range(3)]
    net.train()
    losses += [steps.step(x) for _ in range(2)]
    assert tracked == 7
    return losses, statistics, dict(net.named_buffers())


@like_svi
def test_parameters_may_be_frozen_and_freed(svi: type) -> Any:
    x, net = data(8), Net()
    steps = svi(net.model, net.guide, adam(), Trace_ELBO())
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "decoder.weight was not registered")
        for requires_grad in (True, False, True):
            net.decoder.weight.requires_grad_(requires_grad)
            losses += [steps.step(x) for _ in range(3)]
    return losses


@like_svi
def test_parameters_may_be_replaced(svi: type) -> Any:
    model, guide, args = vae()
    steps = svi(model, guide, adam(), Trace_ELBO())
    losses = [steps.step(*args) for _ in range(3)]
    pyro.get_param_store()["scale"] = torch.tensor([0.2, 3.0])
    losses += [steps.step(*args) for _ in range(3)]
    pyro.clear_param_store()
    return losses + [steps.step(*args) for _ in range(3)]


@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "encoder" in name else 0.01}),
        lambda: pyro.optim.Adam({"lr": 0.01}, clip_args={"clip_norm": 0.5}),
        pytest.param(
            lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}), marks=pytest.mark.slow
        ),
        lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.9}
        ),
    ],
    ids=["per parameter", "clipped norm", "clipped", "scheduled"],
)
@like_svi
def test_optimisers_of_pyro(svi: type, optim: Callable[[], Any]) -> Any:
    x, net, optimiser = data(8), Net(), optim()
    steps = svi(net.model, net.guide, optimiser, TraceMMD_ELBO(1.0, 20.0))
    losses = []
    for _ in range(6):
        losses.append(steps.step(x))
        if isinstance(optimiser, pyro.optim.PyroLRScheduler):
            optimiser.step()
    return losses


@like_svi
def test_one_fused_optimiser_of_torch_steps_as_many_of_pyro_do(svi: type) -> Any:
    x, net, fused = data(8), Net(), partial(torch.optim.Adam, fused=True, **{"lr": 1e-2})
    optim = fused if svi is CompiledSVI else adam()
    steps = svi(net.model, net.guide, optim, TraceMMD_ELBO())
    return [steps.step(x) for _ in range(10)]


@like_svi
def test_an_optimiser_of_torch_takes_up_new_parameters(svi: type) -> Any:
    sgd = partial(torch.optim.SGD, lr=1e-3)
    optim = sgd if svi is CompiledSVI else pyro.optim.SGD({"lr": 1e-3})
    model, guide, _ = vae()

    def extended(x: Tensor, is_shifted: bool) -> None:
        shift = pyro.param("shift", torch.zeros(3)) if is_shifted else 0.0
        guide(x + shift)

    steps = svi(lambda x, is_shifted: model(x), extended, optim, Trace_ELBO())
    return [steps.step(data(8), i > 3) for i in range(8)]


@like_svi
def test_gradients_that_were_there_before_are_added_to(svi: type) -> Any:
    x, net = data(8), Net()
    steps = svi(net.model, net.guide, adam(), Trace_ELBO())
    losses = []
    for _ in range(4):
        (net.decoder.weight**2).sum().backward()
        losses.append(steps.step(x))
    return losses


def test_parameters_may_be_local_to_their_modules() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def trained(svi: type) -> tuple[list[float], dict[str, Tensor]]:
        pyro.set_rng_seed(3)
        guide = AutoNormal(model)
        steps = svi(model, guide, adam(), Trace_ELBO())
        return [steps.step(data(8)) for _ in range(6)], dict(guide.named_parameters())

    with pyro.settings.context(module_local_params=True):
        expected, ours = trained(SVI), trained(CompiledSVI)
    assert not pyro.get_param_store()
    torch.testing.assert_close(ours, expected)

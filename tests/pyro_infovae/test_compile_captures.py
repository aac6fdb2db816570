"""CompiledSVI runs model and guide only where it must capture a step, and follows what changes."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import MAX_CAPTURES, CompiledSVI
from tests.pyro_infovae.compiled_steps import Net, adam, like_svi, no_runs
from tests.pyro_infovae.programs import data, vae


@like_svi
def test_a_minibatch_of_any_size_takes_two_captures(svi: type) -> Any:
    x, net = data(20), Net()
    steps = svi(net.model, net.guide, adam(), Trace_ELBO())
    losses = [steps.step(x[:n]) for n in (8, 8, 8, 5, 5, 8)]
    few = len(net.runs)
    losses += [steps.step(x[:n]) for n in (2, 19, 5, 8, 7)]
    assert (len(net.runs) == few) == (svi is CompiledSVI)
    return losses


@like_svi
def test_a_program_that_counts_its_rows_is_captured_for_every_count(svi: type) -> Any:
    x = data(20)
    model, guide, _ = vae()
    steps = svi(model, guide, adam(), TraceMMD_ELBO())
    return [steps.step(x[:n]) for n in (8, 8, 5, 8, 5, 8)]


@pytest.mark.parametrize("replaced", [False, True])
@like_svi
def test_a_weight_that_is_a_tensor_is_annealed_without_a_new_capture(
    svi: type, replaced: bool
) -> Any:
    x, net, is_compiled = data(8), Net(), svi is CompiledSVI
    elbo = TraceMMD_ELBO(torch.tensor(0.0) if is_compiled else 0.0, 20.0)
    steps = svi(net.model, net.guide, adam(), elbo)
    losses = [steps.step(x) for _ in range(2)]
    for weight in (0.2, 0.5, 1.0):
        if not is_compiled:
            elbo.alpha = weight
            losses.append(steps.step(x))
        else:
            assert isinstance(elbo.alpha, Tensor)
            elbo.alpha = torch.tensor(weight) if replaced else elbo.alpha.fill_(weight)
            losses.append(no_runs(net, partial(steps.step, x)))
    return losses


@pytest.mark.parametrize(
    "what", ["objective", "module", pytest.param("argument", marks=pytest.mark.slow)]
)
@like_svi
def test_a_number_that_changes_is_followed(svi: type, what: str) -> Any:
    x, net, elbo = data(8), Net(), TraceMMD_ELBO(0.0, 20.0)
    steps = svi(net.model, net.guide, adam(), elbo)
    losses = []
    for number in (0.5, 0.5, 0.6, 0.6, 0.5):
        if what == "objective":
            elbo.alpha = number
        elif what == "module":
            net.beta = number
        losses.append(steps.step(x, noise=number if what == "argument" else 0.7))
    return losses


@like_svi
def test_tensors_from_elsewhere_are_read_in_every_step(svi: type) -> Any:
    x, shift, net = data(8), torch.zeros(2), Net()

    def guide(x: Tensor) -> None:
        net.runs.append(len(x))
        pyro.module("net", net)
        with pyro.plate("data", 8):
            pyro.sample("z", dist.Normal(net.encoder(x) + shift, 0.5).to_event(1))

    steps = svi(net.model, guide, adam(), Trace_ELBO())
    losses = [steps.step(x) for _ in range(2)]
    for _ in range(3):
        shift.add_(0.3)
        step = partial(steps.step, x)
        losses.append(no_runs(net, step) if svi is CompiledSVI else step())
    return losses


class Scaled:
    """A model with a number of its own."""

    factor = 1.0

    def model(self) -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), self.factor), obs=ONE)


ONE = torch.tensor(1.0)


def test_many_captures_are_warned_of_and_forgotten() -> None:
    scaled = Scaled()
    svi = CompiledSVI(scaled.model, lambda: None, adam(), Trace_ELBO())
    for factor in range(1, MAX_CAPTURES + 2):
        scaled.factor = factor
        svi.step()
    scaled.factor += 1
    with pytest.warns(UserWarning, match=r"9th time, now since Scaled.factor was 9 and is 10: "):
        svi.step()
    assert len(svi._captured) == MAX_CAPTURES


def test_replayed_steps_run_no_program_and_leave_nothing_behind() -> None:
    x, net = data(8), Net(nn.BatchNorm1d(4))
    svi = CompiledSVI(net.model, net.guide, adam(), TraceMMD_ELBO())
    for _ in range(2):
        svi.step(x)

    def held(steps: int) -> tuple[int, int]:
        for _ in range(steps):
            no_runs(net, partial(svi.step, x))
        gc.collect()
        objects = gc.get_objects()
        return sum(issubclass(type(thing), Tensor) for thing in objects), len(objects)

    gc.freeze()  # what was there before is not looked through
    try:
        tensors, objects = held(10)
        after_tensors, after_objects = held(50)
    finally:
        gc.unfreeze()
    assert after_tensors == tensors
    assert after_objects < objects + 50

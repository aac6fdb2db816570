"""TraceMMD_ELBO keeps the dtype, and waits for no value."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.steps import NoSync


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model, guide, (x,) = programs.vae()
    loss = TraceMMD_ELBO().differentiable_loss(model, guide, x.to(dtype))
    assert loss.dtype == dtype


def test_differentiable_loss_does_not_wait_for_the_device() -> None:
    case = programs.vae(num=20, batch=7)
    pyro.enable_validation(False)
    for kwargs in ({}, {"base": Trace_ELBO(num_particles=2)}, {"estimator": "closed_form"}):
        objective = TraceMMD_ELBO(0.3, **kwargs)
        objective.differentiable_loss(case.model, case.guide, *case.args)
        with NoSync():
            loss = objective.differentiable_loss(case.model, case.guide, *case.args)
        assert loss.requires_grad

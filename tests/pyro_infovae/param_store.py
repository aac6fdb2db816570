"""A check that a question leaves the param store as it is."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from tests.pyro_infovae.programs import Programs


def assert_untouched(case: Programs, question: Any) -> None:
    question()
    assert not list(pyro.get_param_store()), "a guide that was never run leaves no parameter"
    SVI(case.model, case.guide, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO()).step(*case.args)
    store = pyro.get_param_store()
    before = {name: (value, value.detach().clone()) for name, value in store._params.items()}
    for value, _ in before.values():
        value.grad = None
    question()
    assert store._params.keys() == before.keys()
    for name, (value, copied) in before.items():
        assert store._params[name] is value
        assert torch.equal(value, copied)
        assert value.grad is None
    assert torch.is_grad_enabled()

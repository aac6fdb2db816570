"""Single steps of an objective: its loss, its gradients and its penalty, on the programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

# The stock ELBOs beside the default one, on which tests/elbo_suite.py tries the objectives.
BASES: dict[str, Callable[..., ELBO]] = {
    "trace": lambda **kw: Trace_ELBO(**kw),
    "graph": lambda **kw: TraceGraph_ELBO(**kw),
    "renyi": lambda **kw: RenyiELBO(alpha=0.3, **{"num_particles": 2, **kw}),
}
CASES: dict[str, Programs] = {
    "plain": programs.vae(),
    "subsampled": programs.vae(num=20, batch=7),
    "masked": programs.masked_vae(),
    "ragged": programs.sequences(),
    "nested": programs.nested(),
    "hierarchical": programs.hierarchical(),
}
PARTICLES: dict[str, dict[str, Any]] = {
    "one": {},
    "three": {"num_particles": 3},
    "vectorised": {"num_particles": 3, "vectorize_particles": True},
}


def seeded(objective: ELBO, case: Programs, *, seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step from fresh parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    loss = objective.loss_and_grads(case.model, case.guide, *case.args)
    store = pyro.get_param_store()
    grads = {name: store._params[name].grad for name in store}
    return loss, {name: grad.clone() for name, grad in grads.items() if grad is not None}


def penalty(objective: Any, case: Programs, *, seed: int) -> float:
    """The penalty alone: the loss without what the base says of the same draws."""
    if objective.base.max_plate_nesting == math.inf:
        objective.base.loss(case.model, case.guide, *case.args)  # it guesses the nesting by a run
    with pyro.validation_enabled(False), torch.no_grad():
        pyro.set_rng_seed(seed)
        loss = objective.loss(case.model, case.guide, *case.args)
        pyro.set_rng_seed(seed)
        return loss - objective.base.loss(case.model, case.guide, *case.args)


def averages_to(samples: list[float], expected: float) -> bool:
    values = torch.tensor(samples)
    error = values.std() / math.sqrt(len(values))
    return abs(float(values.mean()) - expected) < 4 * float(error)


class NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    """The host may not wait for a value of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host waits for a value")
        return func(*args, **(kwargs or {}))

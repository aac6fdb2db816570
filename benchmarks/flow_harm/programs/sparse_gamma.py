"""A deep exponential family after Pyro's ``sparse_gamma_def``, in small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.flow_harm.program import Case, Framework, Program

ROWS, TOP, BOTTOM, WORDS = 20, 3, 4, 12
RATE, TOP_SHAPE, BOTTOM_SHAPE = 0.3, 0.3, 0.1


def sparse_gamma(framework: Framework) -> Case:
    """Two layers of codes and two of weights, in a guide of gammas by shape and mean."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 3.0, (ROWS, BOTTOM)) @ rng.gamma(0.3, 3.0, (BOTTOM, WORDS))
    x = torch.as_tensor(rng.poisson(rates), dtype=torch.get_default_dtype())

    def model(x: Tensor) -> None:
        with pyro.plate("w_top_plate", TOP * BOTTOM):
            w_top = pyro.sample("w_top", dist.Gamma(TOP_SHAPE, RATE)).reshape(TOP, BOTTOM)
        with pyro.plate("w_bottom_plate", BOTTOM * WORDS):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(TOP_SHAPE, RATE)).reshape(BOTTOM, WORDS)
        with pyro.plate("data", ROWS):
            z = pyro.sample(
                "z_top", dist.Gamma(BOTTOM_SHAPE, BOTTOM_SHAPE).expand([TOP]).to_event(1)
            )
            fn = dist.Gamma(BOTTOM_SHAPE, BOTTOM_SHAPE / (z @ w_top))
            z = pyro.sample("z_bottom", fn.to_event(1))
            pyro.sample("x", dist.Poisson(z @ w_bottom).to_event(1), obs=x)

    def gamma(name: str, *size: int) -> Any:
        softplus = torch.nn.functional.softplus
        shape = softplus(
            pyro.param(f"shape_{name}", torch.full(size, 0.5) + 0.1 * torch.randn(size))
        )
        mean = softplus(pyro.param(f"mean_{name}", 0.1 * torch.randn(size)))
        shape, mean = shape.clamp(min=0.1), mean.clamp(min=1e-4)
        return dist.Gamma(shape, shape / mean)

    def guide(x: Tensor) -> None:
        with pyro.plate("w_top_plate", TOP * BOTTOM):
            pyro.sample("w_top", gamma("w_top", TOP * BOTTOM))
        with pyro.plate("w_bottom_plate", BOTTOM * WORDS):
            pyro.sample("w_bottom", gamma("w_bottom", BOTTOM * WORDS))
        with pyro.plate("data", ROWS):
            pyro.sample("z_top", gamma("z_top", ROWS, TOP).to_event(1))
            pyro.sample("z_bottom", gamma("z_bottom", ROWS, BOTTOM).to_event(1))

    return Case(model, guide, (x,))


PROGRAMS = [Program("sparse gamma network", sparse_gamma, lr=0.05, frameworks=("Pyro",))]

"""What a flow keeps: its mean weight is the evidence, its gradients are finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae._diagnostics.evidence import log_evidence
from tests.pyro_infovae.programs import Programs

X = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)


def normal_hierarchy() -> tuple[Callable[[], None], Tensor]:
    """θ ~ N(0, 1), z_i ~ N(θ, 1), x_i ~ N(z_i, 1), and log p(x)."""

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    covariance = torch.ones(3, 3) + 2 * torch.eye(3)
    return model, dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(X)


def warm(beta_0: Tensor, k: int, num_steps: int) -> Tensor:
    """A schedule of the user's that does not end at 1."""
    return beta_0 + (0.9 - beta_0) * k / num_steps


def flow(**settings: Any) -> TraceHamiltonian_ELBO:
    return TraceHamiltonian_ELBO(3, **{"step_size": 0.1, "beta_0": 0.7, **settings})


def trained(case: Programs, elbo: Any, *, steps: int = 80) -> Any:
    svi = SVI(*case[:2], pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    for _ in range(steps):
        svi.step(*case.args)
    return elbo


def assert_bound(
    case: Programs, exact: Tensor | float, *, largest_error: float = 0.1, **settings: Any
) -> None:
    """E[w] is the evidence, within 4 standard errors."""
    elbo = settings.pop("elbo", flow(learn=False))
    result = log_evidence(*case[:2], *case.args, elbo=elbo, **{"num_samples": 10_000, **settings})
    deviation = (result.log_evidence - exact).abs() / result.standard_error
    assert (deviation < 4).all(), deviation
    assert (result.standard_error < largest_error).all(), "too few draws to tell"


def assert_gradients(
    case: Programs,
    *,
    elbo: TraceHamiltonian_ELBO | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> None:
    """The gradient in every parameter is that of finite differences."""
    elbo = elbo or flow()
    elbo.loss(*case[:2], *case.args)
    leaves = parameters or dict(pyro.get_param_store()._params)
    pyro.set_rng_seed(3)
    elbo.loss_and_grads(*case[:2], *case.args)
    assert len(leaves) >= 2
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        direction = torch.linspace(1.0, 2.0, leaf.numel()).reshape(leaf.shape)
        losses = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                leaf += shift * direction
            pyro.set_rng_seed(3)
            losses.append(elbo.loss(*case[:2], *case.args))
            with torch.no_grad():
                leaf -= shift * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert (leaf.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-6)

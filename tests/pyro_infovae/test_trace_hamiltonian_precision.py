"""TraceHamiltonian_ELBO keeps the dtype of the programs."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import X, flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    objective = TraceHamiltonian_ELBO(2, torch.tensor([0.1, 0.2]))
    torch.set_default_dtype(dtype)
    model, guide, (x,) = programs.vae()
    assert objective.differentiable_loss(model, guide, x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_programs_dtype_is_kept(dtype: torch.dtype, default: torch.dtype) -> None:
    """Of a latent without dims too, which a 0-dim number of another dtype would change."""
    torch.set_default_dtype(default)
    x, one, seen = X.to(dtype), torch.ones((), dtype=dtype), set()

    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(0 * one, one))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(theta, one))
            pyro.sample("x", dist.Normal(z, one), obs=x)
        seen.update((theta.dtype, z.dtype))

    def guide() -> None:
        theta = pyro.sample("theta", dist.Normal(pyro.param("loc", 0 * one), one))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(theta, one))

    loss = flow().differentiable_loss(model, guide)
    loss.backward()
    assert seen == {dtype}
    assert loss.dtype == dtype

"""A flow over models whose discrete latents are summed out: mixtures and hidden Markov models."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO

X = torch.tensor([-1.2, 0.4, 1.9], dtype=torch.float64)
DRAWS = 4000
PRIOR = torch.tensor([0.3, 0.7], dtype=torch.float64)


def normal(x: Any, loc: Any, scale: float) -> Tensor:
    return dist.Normal(loc, scale).log_prob(torch.as_tensor(x))


@config_enumerate
def gmm(x: Tensor) -> None:
    """The locations are global, the assignments enumerated."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(PRIOR))
        pyro.sample("x", dist.Normal(Vindex(loc)[..., k], 0.6), obs=x)


def locations(x: Tensor) -> None:
    at = pyro.param("at", torch.tensor([-0.8, 1.0]))
    pyro.sample("loc", dist.Normal(at, 1.4).to_event(1))


def log_gmm(loc: Tensor, x: Tensor) -> Tensor:
    """log p(x, loc) for loc (..., 2), by hand."""
    terms = normal(x[:, None], loc[..., None, :], 0.6) + PRIOR.log()
    return terms.logsumexp(-1).sum(-1) + normal(loc, 0.0, 1.5).sum(-1)


@config_enumerate
def local(x: Tensor) -> None:
    """z_i | k_i normal with the mean k_i, x_i | z_i: a code per datum under a mixture prior."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(PRIOR))
        z = pyro.sample("z", dist.Normal(2.0 * k, 0.5))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def local_guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.8))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.6 * x + 0.3, scale))


@config_enumerate
def hmm(x: Tensor) -> None:
    """The two emission locations are global, the chain is enumerated."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    k: Any = 0
    for t in pyro.markov(range(len(x))):
        k = pyro.sample(f"k_{t}", dist.Categorical(TRANSITION[k]))
        pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[..., k], 0.6), obs=x[t])


TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)


def log_hmm(loc: Tensor, x: Tensor) -> Tensor:
    """log p(x, loc), by a sum over all chains."""
    chains = []
    for chain in itertools.product([0, 1], repeat=len(x)):
        log_prior = sum(
            TRANSITION[before, now].log()
            for before, now in zip((0, *chain[:-1]), chain, strict=True)
        )
        likelihood = sum(normal(x[t], loc[..., k], 0.6) for t, k in enumerate(chain))
        chains.append(log_prior + likelihood)
    return torch.stack(chains).logsumexp(0) + normal(loc, 0.0, 1.5).sum(-1)


def log_grid(log_joint: Any, x: Tensor) -> float:
    """The log evidence by quadrature over the two locations."""
    axis = torch.linspace(-8, 8, 161)
    loc = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return float(log_joint(loc, x).flatten().logsumexp(0) + 2 * math.log(0.1))


def local_evidence(x: Tensor) -> float:
    scale = math.sqrt(0.5**2 + 0.7**2)
    terms = normal(x[:, None], 2.0 * torch.arange(2), scale) + PRIOR.log()
    return float(terms.logsumexp(-1).sum())


def log_local(z: Tensor, x: Tensor) -> Tensor:
    prior = (normal(z[..., None], 2.0 * torch.arange(2), 0.5) + PRIOR.log()).logsumexp(-1)
    return (prior + normal(x, z, 0.7)).sum(-1)


CASES = {
    "gmm": (gmm, locations, log_gmm, lambda: log_grid(log_gmm, X)),
    "local": (local, local_guide, log_local, lambda: local_evidence(X)),
    "hmm": (hmm, locations, log_hmm, lambda: log_grid(log_hmm, X)),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_is_the_stock_enumeration(case: str) -> None:
    model, guide, _, _ = CASES[case]
    nesting = 0 if case == "hmm" else 1
    found = []
    for elbo in (
        TraceHamiltonian_ELBO(2, 0.0, learn=False),
        TraceEnum_ELBO(max_plate_nesting=nesting),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        loss = elbo.loss_and_grads(model, guide, X)
        found.append((loss, *(p.grad.numpy() for p in pyro.get_param_store()._params.values())))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_weight_is_the_evidence(case: str) -> None:
    """Of many draws at once, weighted by the log joint that is summed by hand."""
    model, guide, log_joint, evidence = CASES[case]
    bounds = []
    for step_size in (0.15, 0.0):
        refined = TraceHamiltonian_ELBO(3, step_size, learn=False).refine(model, guide)
        with torch.no_grad(), pyro.plate("draws", DRAWS, dim=-3):
            trace = poutine.trace(refined).get_trace(X)
        (site,) = (trace.nodes[name] for name in ("loc", "z") if name in trace.nodes)
        log_q = site["fn"].log_prob(site["value"]).reshape(DRAWS, -1).sum(-1)
        log_weights = log_joint(site["value"].reshape(DRAWS, -1), X) - log_q
        ratio = (log_weights - evidence()).exp()
        error = float(ratio.std()) / math.sqrt(DRAWS)
        assert error < 0.1
        assert abs(float(ratio.mean()) - 1) < 4 * error
        bounds.append(float(log_weights.mean()))
    assert bounds[1] < bounds[0] < evidence()


def test_each_datum_is_moved_by_its_own_mixture() -> None:
    """In a plate, whole or subsampled, each row's force is that of the row by itself."""
    elbo = TraceHamiltonian_ELBO(2, 0.2, persistence=1.0, learn=False, max_plate_nesting=1)

    def ends(x: Tensor, noise: Tensor) -> Tensor:
        numbers = iter([noise[0], noise[1]])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.6 * x + 0.3, 0.8))

        with pytest.MonkeyPatch.context() as patch:
            draw = lambda *_, **__: next(numbers)  # noqa: E731
            patch.setattr("torch.distributions.normal._standard_normal", draw)
            patch.setattr("torch.randn_like", draw)
            return elbo.refine(local, guide)(x)["z"]

    noise = torch.tensor([[0.3, -1.0, 0.8], [1.1, 0.2, -0.4]])
    together = ends(X, noise)
    alone = torch.cat([ends(X[i : i + 1], noise[:, i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_particles_train_every_parameter() -> None:
    elbo = TraceHamiltonian_ELBO(2, 0.1, num_particles=3, vectorize_particles=True)
    svi = SVI(poutine.scale(gmm, 1 / 3), poutine.scale(locations, 1 / 3), adam(), elbo)
    assert np.isfinite([svi.step(X) for _ in range(3)]).all()
    assert (pyro.param("at") != torch.tensor([-0.8, 1.0])).all()
    assert ((pyro.param("hamiltonian.step_size_loc") - 0.1).abs() > 1e-4).all()


def adam() -> Any:
    return pyro.optim.Adam({"lr": 0.1})

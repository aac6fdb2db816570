"""The running statistics of BatchNorm move once in a step, and in no diagnostic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import numpyro_backend
from pyro_infovae import TraceHamiltonian_ELBO, TraceMMD_ELBO
from pyro_infovae import diagnostics as ask
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.inference_data import to_inference_data
from tests.numpyro_backend.runs import jit

ROWS = 16


def programs() -> tuple[Any, Any, nn.Module]:
    """The prior and the likelihood are networks with BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.Normal(net(z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(y + z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + 0 * x, 0.9).to_event(1))
            pyro.sample("y", dist.Normal(x, 0.9).to_event(1))

    return model, guide, net


def statistics(net: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in net.buffers()]


def penalised() -> TraceMMD_ELBO:
    return TraceMMD_ELBO(lambd=2.0, base=still())


def still() -> TraceHamiltonian_ELBO:
    return TraceHamiltonian_ELBO(2, 0.0, learn=False)


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        (still, SVI),
        (penalised, SVI),
        pytest.param(still, CompiledSVI, marks=pytest.mark.slow),
    ],
)
def test_a_step_moves_them_as_the_stock_elbos_does(objective: Any, kind: Any) -> None:
    """Without steps the draws are the guide's, and so the statistics those of the stock ELBO."""
    x = torch.linspace(-1, 1, 2 * ROWS).reshape(ROWS, 2)
    found = []
    for elbo in (objective(), Trace_ELBO()):
        pyro.clear_param_store()
        model, guide, net = programs()
        svi = (kind if found == [] else SVI)(model, guide, pyro.optim.SGD({"lr": 0.0}), elbo)
        for step in range(4):
            pyro.set_rng_seed(step)
            svi.step(x)
        assert net[1].num_batches_tracked == 4
        found.append(statistics(net))
    for ours, stock in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock)


@pytest.mark.filterwarnings("ignore:log_evidence")
@pytest.mark.parametrize(
    "diagnostic",
    [
        lambda *run: ask.log_evidence(*run, num_samples=20, chunk_size=1),
        lambda *run: ask.log_evidence(
            *run, num_samples=20, chunk_size=1, elbo=TraceHamiltonian_ELBO()
        ),
        lambda *run: ask.kl_by_dimension(*run),
        lambda *run: ask.mmd_test(*run),
        lambda *run: to_inference_data(*run, num_samples=5, chunk_size=1),
    ],
    ids=["log_evidence", "refined", "kl", "mmd_test", "inference_data"],
)
def test_a_diagnostic_leaves_them(diagnostic: Callable[..., Any]) -> None:
    model, guide, net = programs()
    x = torch.linspace(-1, 1, 2 * ROWS).reshape(ROWS, 2)
    Trace_ELBO().loss(model, guide, x)
    before = statistics(net)
    diagnostic(model, guide, x)
    for now, then in zip(net.buffers(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


@pytest.mark.slow
def test_numpyros_mutable_state_moves_once() -> None:
    x = jnp.linspace(-1, 1, ROWS)

    def model() -> None:
        state = numpyro.primitives.mutable("state", {"runs": jnp.zeros(()), "mean": jnp.zeros(())})
        with numpyro.plate("data", ROWS):
            z = numpyro.sample("z", numpyro.distributions.Normal(0.0, 1.0))
            numpyro.sample("x", numpyro.distributions.Normal(z, 0.5), obs=x)
        state["runs"] = state["runs"] + 1
        state["mean"] = 0.9 * state["mean"] + 0.1 * z.mean()

    def guide() -> None:
        loc = numpyro.param("loc", jnp.zeros(()))
        with numpyro.plate("data", ROWS):
            numpyro.sample("z", numpyro.distributions.Normal(loc, 0.9))

    @jit
    def after(key: Any) -> list[Any]:
        states = []
        for elbo in (
            numpyro_backend.TraceHamiltonian_ELBO(4, 0.0, learn=False),
            numpyro.infer.Trace_ELBO(),
        ):
            svi = numpyro_backend.SVI(model, guide, numpyro.optim.SGD(0.1), elbo)
            state = svi.init(key)
            for _ in range(2):
                state, _ = svi.update(state)
            states.append(state.mutable_state["state"])
        return states

    ours, stock = after(jax.random.key(0))
    assert ours["runs"] == stock["runs"]

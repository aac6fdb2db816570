"""What XLA makes of a step: it is compiled once, and nothing in it is computed for nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.infer import TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO

from numpyro_backend import (
    SVI,
    ConcatCritic,
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from tests.numpyro_backend.runs import jit

pytestmark = pytest.mark.usefixtures("quick_double_precision")
BATCH, PIXELS, HIDDEN, LATENT = 64, 256, 512, 4
X = (jnp.arange(BATCH * PIXELS) % 3 == 0).reshape(BATCH, PIXELS).astype(jnp.float32)


def _weights(name: str, *shape: int) -> Any:
    return numpyro.param(name, lambda key: 0.1 * jax.random.normal(key, shape))


def model(x: Array) -> None:
    first, second = _weights("first", LATENT, HIDDEN), _weights("second", HIDDEN, PIXELS)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        logits = jnp.tanh(z @ first) @ second
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: Array) -> None:
    loc = x @ _weights("encoder", PIXELS, LATENT)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, 0.5).to_event(1))


def flops(objective: ELBO) -> float:
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), objective)
    state = jax.eval_shape(svi.init, jax.random.key(0), X)
    cost: Any = jit(svi.update).lower(state, X).compile().cost_analysis()
    return float(cost["flops"])


def test_prior_draws_run_no_decoder() -> None:
    decoder = 2 * BATCH * HIDDEN * (LATENT + PIXELS)
    stock, one, four = map(
        flops, (TraceMeanField_ELBO(), TraceMMD_ELBO(), TraceMMD_ELBO(prior_draws=4))
    )
    assert stock > 3 * decoder  # forward, and backward to weights and inputs
    assert stock < one < four < stock + 0.3 * decoder


OBJECTIVES = {
    "mmd": lambda: TraceMMD_ELBO(num_particles=2),
    "infomax": lambda: TraceInfoMax_ELBO(ConcatCritic(PIXELS, LATENT, (8,)), num_particles=2),
    "hamiltonian": lambda: TraceHamiltonian_ELBO(2, 0.01, num_particles=2),
    "mmd over hamiltonian": lambda: TraceMMD_ELBO(base=TraceHamiltonian_ELBO(2, 0.01)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "infomax" else [pytest.mark.slow]) for n in OBJECTIVES],
)
def test_a_step_is_traced_and_compiled_once(name: str) -> None:
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), OBJECTIVES[name]())
    state = jit(svi.init)(jax.random.key(0), X)
    traced = 0

    def update(state: Any, x: Array) -> Any:
        nonlocal traced
        traced += 1
        return svi.update(state, x)

    step = jit(update)
    for _ in range(3):
        state, loss = step(state, X)
    assert traced == step._cache_size() == 1
    assert jnp.isfinite(loss)


STRICT = {
    **OBJECTIVES,
    "closed form": lambda: TraceMMD_ELBO(estimator="closed_form"),
    "all negatives": lambda: TraceInfoMax_ELBO(
        SeparableCritic(PIXELS, LATENT, (8,)), negatives="all"
    ),
    "step per dimension": lambda: TraceHamiltonian_ELBO(
        2, jnp.full(LATENT, 0.01), tempering="free", path="posterior"
    ),
}


@pytest.mark.parametrize("objective", STRICT.values(), ids=STRICT)
def test_ranks_are_never_promoted(objective: Any) -> None:
    """NumPyro promotes those of a distribution's parameters, so these have the full shape."""

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            normal = dist.Normal(jnp.zeros((len(x), LATENT)), jnp.ones((len(x), LATENT)))
            z = numpyro.sample("z", normal.to_event(1))
            logits = z @ _weights("decoder", LATENT, PIXELS)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    with jax.numpy_rank_promotion("raise"):
        svi = SVI(model, guide, numpyro.optim.Adam(1e-3), objective())
        jax.eval_shape(svi.update, jax.eval_shape(svi.init, jax.random.key(0), X), X)


@pytest.mark.slow
def test_run_with_and_without_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    svi = SVI(model, guide, numpyro.optim.Adam(1e-2), TraceMMD_ELBO(lambd=10.0))
    losses = []
    for progress_bar in (False, True):
        run = svi.run(jax.random.key(0), 20, X, progress_bar=progress_bar)
        losses.append(run.losses)
        assert ("100%" in capsys.readouterr().err) == progress_bar
    np.testing.assert_allclose(*losses, rtol=1e-9)
    assert losses[0][-1] < losses[0][0]

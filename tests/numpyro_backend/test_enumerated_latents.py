"""A flow over NumPyro models whose discrete latents are summed out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from numpyro import handlers
from numpyro.infer import TraceEnum_ELBO

from numpyro_backend import SVI, TraceHamiltonian_ELBO

pytestmark = pytest.mark.usefixtures("quick_double_precision")

X = np.array([-1.2, 0.4, 1.9])
PRIOR = np.array([0.3, 0.7])
TRANSITION = np.array([[0.8, 0.2], [0.3, 0.7]])


def enumerated() -> dict[str, str]:
    """NumPyro writes into such a dictionary, so that each site needs its own."""
    return {"enumerate": "parallel"}


def gmm(size: int = 3) -> None:
    """The locations are global, the assignments enumerated."""
    loc = numpyro.sample("loc", dist.Normal(jnp.zeros(2), 1.5).to_event(1))
    with numpyro.plate("data", size, 3):
        k = numpyro.sample("k", dist.Categorical(jnp.asarray(PRIOR)), infer=enumerated())
        numpyro.sample("x", dist.Normal(loc[k], 0.6), obs=jnp.asarray(X))


def local(size: int = 3, *, scale: float = 1.0) -> None:
    """z_i | k_i normal with the mean 2 k_i, x_i | z_i: a mixture prior for each datum."""
    with numpyro.plate("data", size, 3):
        k = numpyro.sample("k", dist.Categorical(jnp.asarray(PRIOR)), infer=enumerated())
        with handlers.scale(scale=scale):
            z = numpyro.sample("z", dist.Normal(2.0 * k, 0.5))
        numpyro.sample("x", dist.Normal(z, 0.7), obs=jnp.asarray(X))


def hmm() -> None:
    loc = numpyro.sample("loc", dist.Normal(jnp.zeros(2), 1.5).to_event(1))
    k: Any = 0
    for t, x in enumerate(X):
        probs = jnp.asarray(TRANSITION)[k]
        k = numpyro.sample(f"k{t}", dist.Categorical(probs), infer=enumerated())
        numpyro.sample(f"x{t}", dist.Normal(loc[k], 0.6), obs=jnp.asarray(x))


def locations(_: int = 3) -> None:
    at = numpyro.param("at", jnp.array([-0.8, 1.0]))
    numpyro.sample("loc", dist.Normal(at, 1.4).to_event(1))


def local_guide(size: int = 3) -> None:
    at = numpyro.param("at", jnp.asarray(0.6 * X + 0.3))
    with numpyro.plate("data", size, 3):
        numpyro.sample("z", dist.Normal(at, 0.8))


def log_gmm(loc: Array) -> Array:
    terms = norm.logpdf(X[:, None], loc, 0.6) + np.log(PRIOR)
    return logsumexp(terms, -1).sum() + norm.logpdf(loc, 0.0, 1.5).sum()


def log_local(z: Array) -> Array:
    prior = logsumexp(norm.logpdf(z[:, None], 2.0 * np.arange(2), 0.5) + np.log(PRIOR), -1)
    return (prior + norm.logpdf(X, z, 0.7)).sum()


def log_hmm(loc: Array) -> Array:
    chains = []
    for chain in itertools.product([0, 1], repeat=3):
        steps = zip((0, *chain[:-1]), chain, strict=True)
        log_prior = sum(math.log(TRANSITION[before, now]) for before, now in steps)
        chains.append(log_prior + norm.logpdf(X, loc[jnp.array(chain)], 0.6).sum())
    return logsumexp(jnp.stack(chains)) + norm.logpdf(loc, 0.0, 1.5).sum()


CASES: dict[str, tuple[Any, Any, tuple[int, ...], int]] = {
    "gmm": (gmm, locations, (), 1),
    "local": (local, local_guide, (), 1),
    "local, subsampled": (local, local_guide, (30,), 1),
    "hmm": (hmm, lambda: locations(), (), 0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "hmm" else []) for n in CASES]
)
def test_no_step_is_the_stock_enumeration(name: str) -> None:
    model, guide, args, nesting = CASES[name]
    params = {"at": jnp.array([-0.5, 0.9] if "local" not in name else [0.1, -0.4, 1.0])}
    still = TraceHamiltonian_ELBO(2, 0.0, learn=False)
    found = [
        jax.jit(
            jax.value_and_grad(
                lambda p, elbo=elbo: elbo.loss(jax.random.key(1), p, model, guide, *args)
            )
        )(params)
        for elbo in (still, TraceEnum_ELBO(max_plate_nesting=nesting))
    ]
    assert found[0][0] == pytest.approx(float(found[1][0]), rel=1e-12)
    np.testing.assert_allclose(found[0][1]["at"], found[1][1]["at"], rtol=1e-9, atol=1e-12)


def quadrature(log_joint: Callable[[Array], Array]) -> float:
    axis = jnp.linspace(-8, 8, 161)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    return float(logsumexp(jax.vmap(log_joint)(grid)) + 2 * math.log(0.1))


def local_evidence() -> float:
    scale = math.hypot(0.5, 0.7)
    terms = norm.logpdf(X[:, None], 2.0 * np.arange(2), scale) + np.log(PRIOR)
    return float(logsumexp(terms, -1).sum())


EVIDENCE: dict[str, tuple[Any, Any, str, Any, Callable[[], float]]] = {
    "gmm": (gmm, locations, "loc", log_gmm, lambda: quadrature(log_gmm)),
    "local": (local, local_guide, "z", log_local, local_evidence),
    "hmm": (hmm, lambda: locations(), "loc", log_hmm, lambda: quadrature(log_hmm)),
}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("local", "annealed"),
        ("gmm", "posterior"),
        pytest.param("hmm", "annealed", marks=pytest.mark.slow),
    ],
)
def test_the_mean_weight_is_the_evidence(name: str, path: Any) -> None:
    """Of many draws, weighted by the log joint that is summed by hand."""
    model, guide, site, log_joint, evidence = EVIDENCE[name]
    refined = TraceHamiltonian_ELBO(3, 0.15, learn=False, path=path).refine(model, guide)

    def log_weight(key: Array) -> Array:
        trace = handlers.trace(handlers.seed(refined, key)).get_trace()
        log_q = trace[site]["fn"].log_prob(trace[site]["value"]).sum()
        return log_joint(trace[site]["value"]) - log_q

    log_weights = jax.jit(jax.vmap(log_weight))(jax.random.split(jax.random.key(0), 4000))
    ratio = np.exp(np.asarray(log_weights) - evidence())
    error = ratio.std() / math.sqrt(len(ratio))
    assert error < 0.1
    assert abs(ratio.mean() - 1) < 4 * error
    assert log_weights.mean() < evidence()


def test_trains() -> None:
    svi = SVI(local, local_guide, numpyro.optim.Adam(0.02), TraceHamiltonian_ELBO(2))
    result = svi.run(jax.random.key(0), 50, progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert (result.params["at"] != 0.6 * X + 0.3).all()
    assert (result.params["hamiltonian.step_size_z"] != 0.05).all()


def test_sums_that_are_scaled_apart() -> None:
    flow = TraceHamiltonian_ELBO(2, 0.1, learn=False)
    params = {"at": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"one scale of 'k' and 'z', .* got 1.0 and 0.5"):
        flow.loss(jax.random.key(0), params, lambda: local(scale=0.5), local_guide)


def test_a_global_latent_under_a_subsampled_plate() -> None:
    flow = TraceHamiltonian_ELBO(2, 0.1, learn=False)
    with pytest.raises(ValueError, match=r"'loc' is outside plate 'data', which is subsampled"):
        flow.loss(jax.random.key(0), {"at": jnp.zeros(2)}, gmm, locations, 30)

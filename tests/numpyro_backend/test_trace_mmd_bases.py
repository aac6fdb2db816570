"""TraceMMD_ELBO over other ELBOs than the default one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam

from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.kernels import IMQ, RBF
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import (
    BASES,
    PARTICLES,
    assert_same_step,
    losses,
    neutral,
    seeded,
    trained,
)

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_reproduces_the_stock_elbo_under_a_guide_with_latents_of_its_own() -> None:
    assert_same_step(neutral(), TraceMeanField_ELBO(), programs.auxiliary())


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_reproduces_any_base(base: Callable[..., ELBO]) -> None:
    ours, stock = (base(**PARTICLES["vectorised"]) for _ in range(2))
    assert_same_step(neutral(base=ours), stock, programs.vae(num=20, batch=7))


@pytest.mark.parametrize("base", [TraceGraph_ELBO, RenyiELBO])
def test_reproduces_a_base_that_has_one_particle(base: Callable[..., ELBO]) -> None:
    ours, stock = (base(num_particles=1) for _ in range(2))
    assert_same_step(neutral(base=ours), stock, programs.vae())


def test_default_base_samples_the_kl_where_the_order_differs() -> None:
    def model(x: Array) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 4):
            b = numpyro.sample("b", dist.Normal(a, 1.0))
            numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", 4):
            b = numpyro.sample("b", dist.Normal(numpyro.param("m", 0.3), 1.0))
        numpyro.sample("a", dist.Normal(b.mean(), 1.0))

    case = Programs(model, guide, (np.arange(4.0),))
    assert_same_step(neutral(num_particles=2), Trace_ELBO(num_particles=2), case)


def test_the_penalty_reaches_the_gradient_over_any_base() -> None:
    """At α=1 the bases agree: what is left is the likelihood and the penalty."""
    bases = Trace_ELBO(), TraceGraph_ELBO(), TraceMeanField_ELBO()
    objectives = [TraceMMD_ELBO(1.0, 9.0, base=base) for base in bases]
    (expected, expected_grads), *others = seeded(*objectives, case=programs.vae())
    for loss, grads in others:
        assert loss == pytest.approx(expected, rel=1e-9)
        for name, grad in grads.items():
            np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-9, atol=1e-12)


def test_discrete_latents_are_left_to_a_base_that_knows_them() -> None:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            y = numpyro.sample("y", dist.Bernoulli(0.5))
            z = numpyro.sample("z", dist.Normal(2.0 * y, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(numpyro.param("p", 0.4)))
            numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    svi = SVI(model, guide, Adam(1e-2), loss=TraceMMD_ELBO(lambd=3.0, base=TraceGraph_ELBO()))
    result = trained(svi, programs.data(), steps=200)
    assert result.losses[-50:].mean() < result.losses[:20].mean()
    assert result.params["p"] != 0.4


def test_composes_with_itself() -> None:
    stock = TraceMeanField_ELBO(num_particles=3)
    inner = TraceMMD_ELBO(0.0, 3.0, RBF(1.0), base=stock)
    outer = TraceMMD_ELBO(0.0, 5.0, IMQ(), base=inner)
    flat = TraceMMD_ELBO(0.0, 5.0, IMQ(), base=stock)
    zero, one, other, both = losses(stock, inner, flat, outer, case=programs.vae())
    assert both == pytest.approx(one + other - zero, rel=1e-9)

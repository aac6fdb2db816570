"""The KL is in closed form where that is valid, and what ``Trace_ELBO`` samples elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyro.infer import autoguide
from scipy.stats import norm

from tests.elbo_suite import assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_numpyro, in_pyro

X = np.random.default_rng(0).normal(size=(7, 2)) + 1
NOISE = np.random.default_rng(1).normal(size=(7, 2))


def zero(half: Half, **settings: Any) -> Any:
    """The default objective with no weight on its penalty: an ELBO."""
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        return half.library.TraceMMD_ELBO(lambd=1.0, **settings)


def model_of(half: Half) -> Callable[[Any], None]:
    def model(x: Any) -> None:
        with half.plate("data", 7):
            z = half.sample("z", half.dist.Normal(0 * x, 1.0).to_event(1))
            half.sample("x", half.dist.Normal(z, 0.5).to_event(1), obs=x)

    return model


def drawn_from_an_auxiliary_site(half: Half) -> Callable[[Any], None]:
    """z = m x + s e, with e ~ N(0, I) at a site of its own, and the Jacobian in the point mass."""

    def guide(x: Any) -> None:
        mean, log_scale = half.param("mean", 0.6), half.param("log_scale", -0.7)
        with half.plate("data", 7):
            noise = half.dist.Normal(0 * x, 1.0).to_event(1)
            e = half.sample("e", noise, infer={"is_auxiliary": True})
            log_density = -2 * log_scale + 0 * x[:, 0]
            z = mean * x + half.xp.exp(log_scale) * e
            half.sample("z", half.dist.Delta(z, log_density=log_density, event_dim=1))

    return guide


def given_noise(half: Half, *, as_event: bool = False) -> Callable[[Any], None]:
    """The same with noise from elsewhere, all of whose density is in the point mass."""

    def guide(x: Any) -> None:
        mean, log_scale = half.param("mean", 0.6), half.param("log_scale", -0.7)
        e = half.xp.asarray(NOISE)
        log_density = -0.5 * e**2 - 0.5 * math.log(2 * math.pi) - log_scale
        z = mean * x + half.xp.exp(log_scale) * e
        with half.plate("data", 7):
            if as_event:
                fn = half.dist.Delta(z, log_density=log_density).to_event(1)
            else:
                fn = half.dist.Delta(z, log_density=log_density.sum(-1), event_dim=1)
            half.sample("z", fn)

    return guide


def test_a_flow_written_with_an_auxiliary_site(half: Half) -> None:
    case = Case(model_of(half), drawn_from_an_auxiliary_site(half), (half.xp.asarray(X),))
    steps = half.steps([zero(half), half.infer.Trace_ELBO()], case)
    assert_same_step(*steps, own_parameters=set())


@in_both("as_event", [False, True], quick=[False])
def test_a_flow_without_one(half: Half, as_event: bool) -> None:
    case = Case(model_of(half), given_noise(half, as_event=as_event), (half.xp.asarray(X),))
    scale = math.exp(-0.7)
    z = 0.6 * X + scale * NOISE
    log_p = norm.logpdf(z).sum() + norm.logpdf(X, z, 0.5).sum()
    expected = norm.logpdf(NOISE).sum() - 14 * math.log(scale) - log_p
    assert half.loss(zero(half), case) == pytest.approx(expected, rel=1e-12)


def test_a_latent_beside_a_flow_keeps_its_closed_form(half: Half) -> None:
    """w is of no consequence to x and z is given: a sampled KL would be all that is random."""
    model, guide = model_of(half), given_noise(half)

    def with_w(program: Any, loc: float, scale: float) -> Any:
        def run(x: Any) -> None:
            half.sample("w", half.dist.Normal(loc + 0 * x[0, 0], scale))
            program(x)

        return run

    x = half.xp.asarray(X)
    alone = half.loss(zero(half), Case(model, guide, (x,)))
    both = Case(with_w(model, 0.0, 1.0), with_w(guide, 0.3, 0.5), (x,))
    kl = 0.5 * (0.3**2 + 0.5**2 - 1) - math.log(0.5)
    losses = half.losses([zero(half, sites=["z"])], both, count=3)[0]
    np.testing.assert_allclose(losses, alone + kl, rtol=1e-12)


def hierarchical(half: Half, *latents: str) -> Callable[[Any], None]:
    """Latents, local and global, real and positive, in the order in which they depend."""

    def model(x: Any) -> None:
        mu = half.sample("mu", half.dist.Normal(0 * x[0, 0], 1.0))
        sigma = 0.9
        if "sigma" in latents:
            sigma = half.sample("sigma", half.dist.LogNormal(0 * x[0, 0], 0.5))
        with half.plate("data", 7):
            z = half.sample("z", half.dist.Normal(mu + 0 * x[:, 0], sigma))
            half.sample("x", half.dist.Normal(z, 0.7), obs=x[:, 0])

    return model


REAL = "mu", "z"
POSITIVE = "mu", "sigma", "z"


def structured(model: Any, latents: tuple[str, ...]) -> Any:
    conditionals = dict.fromkeys(latents, "normal")
    dependencies = {"z": {"mu": "linear"}}
    return autoguide.AutoStructured(model, conditionals=conditionals, dependencies=dependencies)


GUIDES: dict[str, Callable[..., Any]] = {
    "AutoNormal": lambda model, _: autoguide.AutoNormal(model),
    "AutoDelta": lambda model, _: autoguide.AutoDelta(model),
    "AutoMultivariateNormal": lambda model, _: autoguide.AutoMultivariateNormal(model),
    "AutoLowRank": lambda model, _: autoguide.AutoLowRankMultivariateNormal(model),
    "AutoGaussian": lambda model, _: autoguide.AutoGaussian(model),
    "AutoStructured": structured,
    "AutoIAFNormal": lambda model, _: autoguide.AutoIAFNormal(model, hidden_dim=[16]),
}


@in_pyro
@pytest.mark.parametrize("latents", [REAL, POSITIVE], ids=["real", "positive"])
@pytest.mark.parametrize("guide", GUIDES)
def test_every_automatic_guide_of_pyro(half: Half, guide: str, latents: tuple[str, ...]) -> None:
    """All of them make point masses, beside an auxiliary site or with a density of their own."""
    model = hierarchical(half, *latents)
    case = Case(model, GUIDES[guide](model, latents), (half.xp.asarray(X),))
    ours, stock = half.losses([zero(half), half.infer.Trace_ELBO()], case, count=3)
    np.testing.assert_allclose(ours, stock, rtol=1e-12)


@in_numpyro
@pytest.mark.slow
def test_auto_normal_of_numpyro_keeps_its_closed_form(half: Half) -> None:
    case = Case(hierarchical(half, *REAL), None, (half.xp.asarray(X),))
    start = half.init_to({"mu": np.zeros(()), "z": np.zeros(7)})
    guide = half.auto("AutoNormal", case.model, *case.args, init_loc_fn=start)
    case = case._replace(guide=guide)
    elbos = [zero(half), half.infer.TraceMeanField_ELBO(), half.infer.Trace_ELBO()]
    ours, closed, sampled = half.losses(elbos, case, count=3)
    np.testing.assert_allclose(ours, closed, rtol=1e-12)
    assert (np.abs(ours - sampled) > 1e-3).all()


@pytest.mark.parametrize("handler", ["scale", "mask"])
def test_a_latent_that_model_and_guide_weigh_differently(half: Half, handler: str) -> None:
    mask = np.arange(7) < 4
    context = {"scale": lambda: half.scale(3.0), "mask": lambda: half.mask(mask)}[handler]

    def model(x: Any) -> None:
        with half.plate("data", 7):
            with context():
                z = half.sample("z", half.dist.Normal(0 * x[:, 0], 1.0))
            half.sample("x", half.dist.Normal(z, 0.5), obs=x[:, 0])

    def guide(x: Any) -> None:
        with half.plate("data", 7):
            half.sample("z", half.dist.Normal(half.param("m", 0.3) * x[:, 0], 0.7))

    case = Case(model, guide, (half.xp.asarray(X),))
    steps = half.steps([zero(half), half.infer.Trace_ELBO()], case)
    assert_same_step(*steps, own_parameters=set())

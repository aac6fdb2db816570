"""TraceMMD_ELBO under the guides that people write, and automatic ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from numpyro.optim import Adam

from numpyro_backend import TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import averages_to, losses, penalties, penalty, trained

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def test_a_point_mass_guide_without_kl() -> None:
    """The deterministic encoder of a WAE: α=1 removes the KL."""
    model, _, (x,) = programs.vae(num=30)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = x @ numpyro.param("encoder", jnp.full((3, 2), 2.0))
            numpyro.sample("z", dist.Delta(z, event_dim=1))

    svi = SVI(model, guide, Adam(3e-2), loss=TraceMMD_ELBO(1.0, 1000.0))
    params = trained(svi, x, steps=150).params
    spread = (x @ params["encoder"]).var(0).mean()
    assert spread == pytest.approx(1.0, abs=0.45), "towards the prior's variance"


def test_auto_normal() -> None:
    model, _, args = programs.vae()
    case = Programs(model, AutoNormal(model), args)
    exact = penalty(TraceMMD_ELBO(0.0, 2.0, estimator="closed_form"), case)
    sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=2, num_particles=2)
    assert averages_to(penalties(sampled, case, 100), exact)


def test_auto_normal_kl_is_reweighted_whole() -> None:
    model, _, args = programs.vae()
    guide = AutoNormal(model)
    case = Programs(model, guide, args)
    weights = 0.0, 0.5, 1.0
    objectives = [TraceMMD_ELBO(w, 1 - w + 1e-12, base=Trace_ELBO()) for w in weights]
    none, half, whole = losses(*objectives, case=case)
    _, guide_key = jax.random.split(jax.random.key(3))
    site = handlers.trace(handlers.seed(guide, guide_key)).get_trace(*args)["z"]
    prior = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    kl = (site["fn"].log_prob(site["value"]) - prior.log_prob(site["value"])).sum()
    assert none - whole == pytest.approx(float(kl), rel=1e-6)
    assert none - half == pytest.approx(0.5 * float(kl), rel=1e-6)


@pytest.mark.parametrize("autoguide", [AutoDelta, AutoMultivariateNormal])
def test_latents_of_any_autoguide_are_penalised(autoguide: Callable[..., Any]) -> None:
    model, _, args = programs.vae()
    case = Programs(model, autoguide(model), args)
    assert penalties(TraceMMD_ELBO(0.0, 10.0, estimator="biased"), case, 2).min() > 0


def test_a_guide_without_plates() -> None:
    model, guide, args = programs.covariate_prior()

    def bare(x: Array) -> None:
        loc = numpyro.param("weight", 1.0) * x[:, 0]
        numpyro.sample("z", dist.Normal(loc, 1.0))

    objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", base=Trace_ELBO())
    expected, value = (
        penalty(objective, Programs(model, program, args)) for program in (guide, bare)
    )
    assert value == pytest.approx(expected, rel=1e-12)

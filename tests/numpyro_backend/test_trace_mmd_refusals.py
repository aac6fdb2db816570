"""What TraceMMD_ELBO refuses beside tests/refusals.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.elbo import TraceEnum_ELBO

from numpyro_backend import TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import Params, evaluate_shapes

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def _bernoulli() -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            y = numpyro.sample("y", dist.Bernoulli(0.5))
            z = numpyro.sample("z", dist.Normal(y, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(numpyro.param("p", 0.4)))
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def _gamma() -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.LogNormal(numpyro.param("m", 0.0), 1.0))

    return Programs(model, guide, (programs.data(),))


def _outside_plates() -> Programs:
    model, _, args = programs.vae()

    def guide(x: Array) -> None:
        loc = numpyro.param("m", jnp.zeros((len(x), 2)))
        numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Programs(model, guide, args)


class _SelfVectorised(Trace_ELBO):
    def loss_with_mutable_state(
        self, rng_key: Array, param_map: Params, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        losses = jax.vmap(
            lambda key: Trace_ELBO().loss(key, param_map, *args, **kwargs),
        )(jax.random.split(rng_key))
        return {"loss": losses.mean(), "mutable_state": None}


REFUSED_SETTINGS = {
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        r"particle settings in base; got TraceMMD_ELBO\(base=..., num_particles=3.*Trace_ELBO\(",
    ),
    "enumerating base": ({"base": TraceEnum_ELBO()}, "draws every latent; got TraceEnum_ELBO"),
    "multi-sample base": (
        {"base": Trace_ELBO(multi_sample_guide=True)},
        r"multi_sample_guide=False; got Trace_ELBO\(multi_sample_guide=True\)",
    ),
    "loss by site": (
        {"base": TraceMeanField_ELBO(sum_sites=False)},
        r"sum_sites=True; got TraceMeanField_ELBO\(sum_sites=False\)",
    ),
}

REFUSED_PROGRAMS: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "not reparameterised": (
        _bernoulli(),
        {"sites": ["y", "z"]},
        r"'y', which is not reparameterised \(Bernoulli.*\): leave it out of sites",
    ),
    "closed form": (
        _gamma(),
        {"estimator": "closed_form"},
        "diagonal normal at site 'z'; the guide has LogNormal.*use estimator='unbiased'",
    ),
    "guide outside plates": (
        _outside_plates(),
        {"alpha": 0.5},
        r"KL of 'z' cannot be weighted by 0.5: the guide draws it outside its plates \['data'\]",
    ),
    "vectorised base": (
        programs.vae(),
        {"base": _SelfVectorised()},
        "got _SelfVectorised, which runs model and guide inside a transformation of its own",
    ),
}


@pytest.mark.parametrize(("settings", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
def test_settings(settings: dict, match: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=match):
        TraceMMD_ELBO(**settings)


@pytest.mark.parametrize(
    ("case", "settings", "match"), REFUSED_PROGRAMS.values(), ids=REFUSED_PROGRAMS
)
def test_programs(case: Programs, settings: dict, match: str) -> None:
    objective = TraceMMD_ELBO(**settings)
    with pytest.raises((ValueError, NotImplementedError), match=match):
        evaluate_shapes(objective, case)


def test_one_density_for_several_latents_cannot_be_reweighted() -> None:
    model, _, args = programs.two_latents()
    case = Programs(model, AutoMultivariateNormal(model), args)
    evaluate_shapes(TraceMMD_ELBO(0.0), case)
    with pytest.raises(
        NotImplementedError, match=r"KL of 'z1' cannot be weighted by 0.5: .*'_auto_latent'"
    ):
        evaluate_shapes(TraceMMD_ELBO(0.5), case)

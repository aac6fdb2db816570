"""NumPyro's examples: networks of its own and of flax, sums over labels, automatic guides."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import flax_module
from numpyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, autoguide
from numpyro.infer.autoguide import AutoNormal

from tests.halves import Case
from tests.wild.programs.program import N, Program, Refused, Works

D, CLASSES = 6, 3


def _bits(*shape: int) -> Array:
    rng = np.random.default_rng(0)
    level = rng.normal(size=(*shape[:-1], 1))
    return jnp.asarray(rng.normal(size=shape) < 1.5 * level, float)


def _network(name: str, *widths: int) -> Any:
    """A network whose parameters are sites."""

    def apply(x: Array) -> Array:
        rng = np.random.default_rng(len(name))
        for i, (width, after) in enumerate(pairwise(widths)):
            start = rng.normal(size=(width, after)) / np.sqrt(width)
            x = x @ numpyro.param(f"{name}.w{i}", start)
            x = x + numpyro.param(f"{name}.b{i}", np.zeros(after))
            x = jax.nn.softplus(x) if i < len(widths) - 2 else x
        return x

    return apply


def vae() -> Case:
    encoder, decoder = _network("encoder", D, 8, 4), _network("decoder", 2, 8, D)

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(encoder(x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return Case(model, guide, (_bits(N, D),))


class _Normed(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            x = nn.softplus(x)
            x = nn.Dense(width, param_dtype=jnp.float64)(x)
            x = nn.BatchNorm(use_running_average=False, param_dtype=jnp.float64)(x)
        return x


def prodlda() -> Case:
    """Batch norm on both sides, whose statistics are mutable."""
    topics = 2
    encoder, decoder = _Normed((8, 2 * topics)), _Normed((D,))

    def model(docs: Array) -> None:
        topics_to_words = flax_module("decoder", decoder, docs[:, :topics], mutable=["batch_stats"])
        with numpyro.plate("documents", len(docs)):
            fn = dist.Normal(jnp.zeros(topics), 1.0).to_event(1)
            probs = jax.nn.softmax(topics_to_words(numpyro.sample("logtheta", fn)))
            total = docs.sum(-1).astype(int)
            numpyro.sample("obs", dist.MultinomialProbs(probs, total, total_count_max=60), obs=docs)

    def guide(docs: Array) -> None:
        words_to_topics = flax_module("encoder", encoder, docs, mutable=["batch_stats"])
        with numpyro.plate("documents", len(docs)):
            loc, log_scale = jnp.split(words_to_topics(docs), 2, -1)
            numpyro.sample("logtheta", dist.Normal(loc, jnp.exp(0.5 * log_scale)).to_event(1))

    docs = np.random.default_rng(0).poisson(2.0, size=(N, D))
    return Case(model, guide, (jnp.asarray(docs, float),))


def semi_supervised() -> Case:
    """The guide sums over the labels."""
    label, encoder = _network("label", D, 8, CLASSES), _network("encoder", D + CLASSES, 8, 4)
    decoder = _network("decoder", 2 + CLASSES, 8, D)

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            y = numpyro.sample("y", dist.Categorical(jnp.ones(CLASSES) / CLASSES))
            logits = decoder(_together(z, jnp.eye(CLASSES)[y]))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            y = numpyro.sample(
                "y", dist.Categorical(logits=label(x)), infer={"enumerate": "parallel"}
            )
            loc, log_scale = jnp.split(encoder(_together(x, jnp.eye(CLASSES)[y])), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return Case(model, guide, (_bits(N, D),))


def mixture() -> Case:
    """Assignments are summed out in the model."""

    def model(x: Array) -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(2, 2.0)))
        with numpyro.plate("components", 2):
            locs = numpyro.sample("locs", dist.Normal(0.0, 3.0))
        with numpyro.plate("data", len(x)):
            k = numpyro.sample(
                "assignment", dist.Categorical(weights), infer={"enumerate": "parallel"}
            )
            numpyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    x = np.random.default_rng(0).normal(size=12) + np.where(np.arange(12) < 5, 2.0, -2.0)
    guide = AutoNormal(numpyro.handlers.block(model, hide=["assignment"]))
    return Case(model, guide, (jnp.asarray(x),))


def _linear(x: Array, y: Array) -> None:
    sigma = numpyro.sample("sigma", dist.Uniform(0.0, 10.0))
    weight = numpyro.sample("weight", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(x @ weight, sigma), obs=y)


def _schools(y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 12.0), obs=y)


def linear(kind: str, **settings: Any) -> Case:
    x = np.random.default_rng(0).normal(size=(12, 2))
    args = jnp.asarray(x), jnp.asarray(x @ np.array([1.0, -0.5]))
    return _automatic(kind, _linear, *args, **settings)


def schools(kind: str, **settings: Any) -> Case:
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return _automatic(kind, _schools, y, **settings)


def _automatic(kind: str, model: Any, *args: Any, **settings: Any) -> Case:
    """With a guide that knows the model, so that all objectives start from the same values."""
    guide = getattr(autoguide, kind)(model, **settings)
    numpyro.handlers.seed(guide, 0)(*args)
    return Case(model, guide, args)


def _together(a: Array, b: Array) -> Array:
    """Side by side, once their batch shapes have been broadcast."""
    shape = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    parts = (jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in (a, b))
    return jnp.concatenate(list(parts), -1)


NO_PLATE = "its latents are outside plates of data"
POINT = "the guide has no density"
FEW = "estimates mutual information from 8 rows"
BASES = {"AutoNormal": TraceMeanField_ELBO}  # which draws each latent from a density of its own
PARTICLES = {"sites": ["weight"], "num_particles": 4}


def _regression(kind: str, **settings: Any) -> Program:
    return Program(
        name=f"linear regression, {kind}",
        like="NumPyro's `bayesian_regression` tutorial",
        half="NumPyro",
        make=partial(linear, kind, **settings),
        stock=BASES.get(kind, Trace_ELBO),
        mmd=Works(PARTICLES, otherwise=r"'weight' is in no plate: name it in sites, and set num_"),
        infomax=Refused(r"no latent is left.*'weight' is in no plate", NO_PLATE),
        hamiltonian=Works(),
        step_size=0.005,
    )


def _hierarchy(kind: str, **settings: Any) -> Program:
    return Program(
        name=f"eight schools, {kind}",
        like="NumPyro's `eight_schools` example",
        half="NumPyro",
        make=partial(schools, kind, **settings),
        stock=BASES.get(kind, Trace_ELBO),
        mmd=Works(),
        infomax=Works(warns=FEW),
        hamiltonian=Works(),
    )


PROGRAMS = [
    Program(
        name="VAE",
        like="NumPyro's `vae.py`",
        half="NumPyro",
        make=vae,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="ProdLDA, batch norm of flax",
        like="NumPyro's `prodlda.py`",
        half="NumPyro",
        make=prodlda,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="semi-supervised VAE (M2), labels summed out in the guide",
        like="NumPyro's `ss_vae` with `TraceEnum_ELBO`",
        half="NumPyro",
        make=semi_supervised,
        stock=partial(TraceEnum_ELBO, max_plate_nesting=1),
        needs_base=True,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(
            {"sites": ["z"]},
            otherwise=r"'y' is not reparameterised.*name others in sites",
            warns="does not support models with discrete latent",
            against=Trace_ELBO,
        ),
    ),
    Program(
        name="Gaussian mixture, a normal guide",
        like="NumPyro's `TraceEnum_ELBO`",
        half="NumPyro",
        make=mixture,
        stock=partial(TraceEnum_ELBO, max_plate_nesting=1),
        needs_base=True,
        mmd=Refused(r"no latent is left.*'locs' is in plates.*hold no observed site", NO_PLATE),
        infomax=Refused(r"no latent is left.*'locs' is in plates.*hold no observed site", NO_PLATE),
        hamiltonian=Works(),
    ),
    _regression("AutoNormal"),
    _regression("AutoMultivariateNormal"),
    _regression("AutoDAIS", K=2),
    _hierarchy("AutoNormal"),
    _hierarchy("AutoBNAFNormal", hidden_factors=[2]),
    _hierarchy("AutoDAIS", K=2),
]

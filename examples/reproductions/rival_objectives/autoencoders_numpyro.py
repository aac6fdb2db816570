"""The autoencoder in NumPyro: trained under our objective, and measured."""

import warnings
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer import TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO

from numpyro_backend import SVI, TraceMMD_ELBO
from numpyro_backend.diagnostics import log_evidence, mmd_test
from rival_objectives.autoencoders import (
    LAMBD,
    LATENTS,
    PARTICLES,
    Plan,
    Trained,
    Weights,
    first_weights,
    images,
    minibatches,
)
from rival_objectives.steps import take_steps


class VAE:
    """An ordinary model and guide.

    Args:
        weights: To start from.
    """

    def __init__(self, weights: Weights) -> None:
        self.start = jax.tree.map(jnp.asarray, asdict(weights))

    def model(self, images: Array, rows: Array) -> None:
        """Draw a code for every row, and score its image."""
        decoder = numpyro.param("decoder", self.start["decoder"])
        with _minibatch(len(images), rows):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
            likelihood = dist.Bernoulli(logits=network(decoder, z)).to_event(1)
            numpyro.sample("x", likelihood, obs=images[rows])

    def guide(self, images: Array, rows: Array) -> None:
        """Draw a code for every row, given its image."""
        encoder = numpyro.param("encoder", self.start["encoder"])
        with _minibatch(len(images), rows):
            loc, log_variance = jnp.split(network(encoder, images[rows]), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_variance / 2)).to_event(1))


def train(method: str, alpha: float, seed: int, plan: Plan) -> Trained:
    """Take the plan's steps.

    Args:
        method: `ELBO`, or a `TraceMMD_ELBO`: as it is, or with as many particles as Trace_MMD's
            default.
        alpha: Of the objective.
        seed: Of weights, minibatches and noise.
        plan: How long.
    """
    objective: dict[str, ELBO] = {
        "ELBO": TraceMeanField_ELBO(),
        "TraceMMD_ELBO": TraceMMD_ELBO(alpha, LAMBD),
        f"TraceMMD_ELBO, {PARTICLES} particles": TraceMMD_ELBO(
            alpha, LAMBD, num_particles=PARTICLES
        ),
    }
    vae = VAE(first_weights(plan, seed))
    train_images = jnp.asarray(images()[0])
    rows = minibatches(plan, seed)
    svi = SVI(vae.model, vae.guide, numpyro.optim.Adam(plan.learning_rate), objective[method])
    state = svi.init(jax.random.key(seed), train_images, jnp.asarray(rows[0]))
    update = jax.jit(svi.update)

    def step(rows: np.ndarray) -> Array:
        nonlocal state
        state, loss = update(state, train_images, rows)
        return loss

    seconds = take_steps(step, rows)
    params = jax.device_get(svi.get_params(state))
    return Trained(Weights(params["encoder"], params["decoder"]), seconds)


def measure(weights: Weights, plan: Plan) -> dict[str, float]:
    """What the weights are worth on held-out images, in nats per image."""
    vae = VAE(weights)
    test = jnp.asarray(images()[1])
    evidence_key, mmd_key, code_key = jax.random.split(jax.random.key(0), 3)
    call = (vae.start, vae.model, vae.guide, test, jnp.arange(len(test)))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the table says it
        evidence = log_evidence(evidence_key, *call, num_samples=plan.samples)
    mmd = mmd_test(mmd_key, *call)
    loc, log_variance = jnp.split(network(vae.start["encoder"], test), 2, -1)
    codes = dist.Normal(loc, jnp.exp(log_variance / 2)).sample(code_key, (plan.samples,))
    likelihood = dist.Bernoulli(logits=network(vae.start["decoder"], codes)).log_prob(test)
    return {
        "log_evidence": float(evidence.log_evidence.mean()),
        "effective": float(evidence.effective_sample_size.mean()),
        "mmd_squared": float(mmd.mmd_squared),
        "p_value": float(mmd.p_value),
        "reconstruction": -float(likelihood.sum(-1).mean()),
    }


def network(layers: Any, values: Array) -> Array:
    """Linear layers with SiLU in between."""
    (kernel, bias), *rest = layers
    values = values @ kernel + bias
    for kernel, bias in rest:
        values = jax.nn.silu(values) @ kernel + bias
    return values


def _minibatch(size: int, rows: Array) -> numpyro.plate:
    with handlers.substitute(data={"data": rows}):
        return numpyro.plate("data", size, len(rows))

"""A flow in an autoencoder of digits whose evidence is exact, against the stock ELBO."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.nn import relu
from jax.scipy.special import logsumexp
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO

from benchmarks.measuring import Call, Estimate
from benchmarks.report import Report, Row
from numpyro_backend import SVI, TraceHamiltonian_ELBO

SEEDS = (0, 1, 2)
STEPS, BATCH, HIDDEN, LEVELS = 10_000, 128, 128, 16
HELD_OUT = 360
LEARNING_RATE = 2e-3
SIDE, POINTS = 7.0, 281
DRAWS = 50

Layer = tuple[Array, Array]


class Trained(NamedTuple):
    """What a training came to, in nats per held-out image.

    Attributes:
        evidence: the exact log p(x).
        gap: how far the objective's own bound is below it.
        seconds: of training, without compilation.
    """

    evidence: float
    gap: float
    seconds: float


def measure(
    call: Call, *, seeds: Sequence[int] = SEEDS, steps: int = STEPS, draws: int = DRAWS
) -> Report:
    """A row for the stock ELBO, for the flow, and for the ELBO in the flow's time."""
    return Report(
        title="A flow in an autoencoder of digits",
        method=(
            f"NumPyro, float32: a VAE 64-{HIDDEN}-2 of 8 x 8 digits (binomial, {LEVELS} levels),"
            f" minibatches of {BATCH}, Adam {LEARNING_RATE}; `TraceHamiltonian_ELBO()` with its"
            f" defaults. *log p(x)* of {HELD_OUT} held-out images is exact, by a grid of"
            f" {POINTS} x {POINTS} codes; *gap* is what the objective's own bound, of {draws} draws"
            " an image, lacks of it. Nats per image, mean ± standard deviation over"
            f" {len(seeds)} seeds, and the lowest seed. Seconds are those of all steps,"
            " compilation left out."
        ),
        packages=["pyro-infovae", "jax", "numpyro", "scikit-learn"],
        tables=[call(rows, tuple(seeds), steps, draws)],
    )


def rows(seeds: Sequence[int], steps: int, draws: int) -> list[Row]:
    """The three of them."""
    images = digits()
    stock = [train(Trace_ELBO(), images, seed, steps, draws) for seed in seeds]
    flow = [train(TraceHamiltonian_ELBO(), images, seed, steps, draws) for seed in seeds]
    slower = float(np.median([f.seconds / s.seconds for f, s in zip(flow, stock, strict=True)]))
    longer = round(steps * slower)
    as_long = [train(Trace_ELBO(), images, seed, longer, draws) for seed in seeds]
    return [
        _row("Trace_ELBO", steps, stock),
        _row("TraceHamiltonian_ELBO", steps, flow),
        _row("Trace_ELBO, in the flow's time", longer, as_long),
    ]


def digits() -> tuple[Array, Array]:
    """Images to train on, and held-out ones."""
    from sklearn.datasets import load_digits

    images = jnp.asarray(load_digits().data, jnp.float32)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]


def train(
    objective: ELBO, images: tuple[Array, Array], seed: int, steps: int, draws: int
) -> Trained:
    """Train one autoencoder, and ask it for the held-out images."""
    inside, outside = images
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), objective)
    key, first = jax.random.split(jax.random.key(seed))
    state = svi.init(first, inside[:BATCH], len(inside))

    def step(state: Any, key: Array) -> tuple[Any, Array]:
        rows = jax.random.choice(key, len(inside), (BATCH,), replace=False)
        return svi.update(state, inside[rows], len(inside))

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    keys = jax.random.split(key, steps)
    compiled = run.lower(state, keys).compile()
    before = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(state, keys))
    seconds = time.perf_counter() - before

    @jax.jit
    def loss(key: Array) -> Array:
        replica = state._replace(rng_key=key)
        return svi.evaluate(replica, outside, len(outside))

    bound = -float(jax.lax.map(loss, jax.random.split(key, draws)).mean()) / len(outside)
    evidence = float(log_evidence(svi.get_params(state), outside).mean())
    return Trained(evidence, evidence - bound, seconds)


def model(x: Array, num_data: int) -> None:
    """Codes of two numbers, and a decoder of one hidden layer."""
    decoder = network("decoder", (2, HIDDEN, x.shape[1]))
    with numpyro.plate("data", num_data, subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        pixels = dist.Binomial(LEVELS, logits=forward(decoder, z))
        numpyro.sample("x", pixels.to_event(1), obs=x)


def guide(x: Array, num_data: int) -> None:
    """An encoder of one hidden layer."""
    encoder = network("encoder", (x.shape[1], HIDDEN, 4))
    loc, log_scale = jnp.split(forward(encoder, x / LEVELS), 2, -1)
    with numpyro.plate("data", num_data, subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def network(name: str, widths: Sequence[int], *, spread: float = 1.0) -> list[Layer]:
    """Layers that are parameters; their weights start out with this spread."""
    return [
        (
            numpyro.param(f"{name}_weight_{i}", _initial(before, after, spread)),
            numpyro.param(f"{name}_bias_{i}", jnp.zeros(after)),
        )
        for i, (before, after) in enumerate(itertools.pairwise(widths))
    ]


def forward(layers: Sequence[Layer], values: Array) -> Array:
    """What a network makes of values."""
    *hidden, last = layers
    for weight, bias in hidden:
        values = relu(values @ weight + bias)
    return values @ last[0] + last[1]


def log_evidence(params: dict[str, Array], images: Array) -> Array:
    """Exact log p(x) of each image, by a grid over the codes."""
    axis = jnp.linspace(-SIDE, SIDE, POINTS)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    decoder = [(params[f"decoder_weight_{i}"], params[f"decoder_bias_{i}"]) for i in range(2)]
    pixels = dist.Binomial(LEVELS, logits=forward(decoder, grid)).to_event(1)
    prior = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1)
    area = 2 * jnp.log(axis[1] - axis[0])
    return jax.lax.map(lambda x: logsumexp(prior + pixels.log_prob(x)) + area, images)


def _initial(before: int, after: int, spread: float) -> Any:
    return lambda key: spread * jax.random.normal(key, (before, after)) / before**0.5


def _row(name: str, steps: int, found: Sequence[Trained]) -> Row:
    evidence, gap, seconds = (np.array(values) for values in zip(*found, strict=True))
    return {
        "objective": name,
        "steps": steps,
        "log p(x)": Estimate(float(evidence.mean()), float(evidence.std(ddof=1))),
        "lowest": float(evidence.min()),
        "gap": Estimate(float(gap.mean()), float(gap.std(ddof=1))),
        "seconds": float(np.median(seconds)),
    }

"""What TraceMMD_ELBO comes to by its weight and estimator, where log p(x) is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO

from benchmarks import digits_flow
from benchmarks.digits_flow import forward, network
from benchmarks.measuring import Call, Estimate
from benchmarks.report import Report, Row
from numpyro_backend import SVI, TraceMMD_ELBO
from numpyro_backend.kernels import RBF
from numpyro_backend.mmd import mmd_squared

SEEDS = 3
WEIGHTS = (10.0, 100.0, 1000.0)
COLUMNS = ("log p(x)", "KL", "MMD²", "swing")
ESTIMATORS = ("unbiased", "features", "closed_form")
PROGRAMS = ("two normals", "ten factors", "digits")
LAST = 100
SPREAD = 3**-0.5
"""That of the weights of torch's linear layers."""
FEW = 2000
"""Codes that the MMD is estimated from."""


class Problem(NamedTuple):
    """What is trained.

    Attributes:
        model: of a minibatch and the number of data.
        guide: likewise.
        train: the data.
        held_out: those that are asked about.
        codes: a draw of a code for each row, given the parameters.
        log_evidence: exact, of each row.
        batch: rows of a minibatch.
        learning_rate: Adam's.
        steps: of training.
    """

    model: Callable[..., None]
    guide: Callable[..., None]
    train: Array
    held_out: Array
    codes: Callable[[dict[str, Array], Array], tuple[Array, Array]]
    log_evidence: Callable[[dict[str, Array], Array], Array]
    batch: int
    learning_rate: float
    steps: int


def measure(
    call: Call,
    *,
    programs: Sequence[str] = PROGRAMS,
    weights: Sequence[float] = WEIGHTS,
    estimators: Sequence[str] = ESTIMATORS,
    seeds: int = SEEDS,
    steps: int | None = None,
) -> Report:
    """A table by program: the stock ELBO, and the MMD by weight and estimator."""
    return Report(
        title="TraceMMD_ELBO: its weight and its estimator",
        method=(
            "NumPyro, float32, α = 0, the kernel of the default. *Two normals* is the program of"
            " README: 500 rows of 2 numbers, a code of 2, linear networks, minibatches of 100, 1000"
            " steps. *Ten factors*: 1000 rows of 20 numbers, a code of 10, linear networks,"
            " minibatches of 100, 2000 steps. *Digits*: a VAE 64-128-2, minibatches of 128, 3000"
            " steps. log p(x) is exact (normal, or by a grid), of held-out rows, in nats per row;"
            " *KL* is the guide's from the prior; *MMD²* that of held-out codes; *swing* is by how"
            f" much one of the last {LAST} losses is off their mean, at most. Means ± standard"
            f" deviations over {seeds} seeds."
        ),
        packages=["pyro-infovae", "jax", "numpyro", "scikit-learn"],
        tables=[
            [
                call(row, name, estimator, weight, seeds, steps)
                for estimator, weight in [
                    ("", 0.0),
                    *((estimator, weight) for estimator in estimators for weight in weights),
                ]
            ]
            for name in programs
        ],
    )


def row(name: str, estimator: Any, weight: float, seeds: int, steps: int | None) -> Row:
    """What one objective comes to."""
    problem = MAKE[name]()
    objective: ELBO = (
        TraceMMD_ELBO(lambd=weight, estimator=estimator) if estimator else Trace_ELBO()
    )
    ask = partial(trained, problem, objective, steps or problem.steps)
    found = jax.jit(jax.vmap(ask))(jax.random.split(jax.random.key(0), seeds))
    columns = {key: np.asarray(found[key], float) for key in COLUMNS}
    return {
        name: f"`{estimator}`" if estimator else "`Trace_ELBO`",
        "λ": f"{weight:g}" if estimator else "-",
        **{
            key: Estimate(float(values.mean()), float(values.std(ddof=1)))
            for key, values in columns.items()
        },
    }


def trained(problem: Problem, objective: ELBO, steps: int, key: Array) -> dict[str, Array]:
    """What a training comes to, by the name of a column."""
    svi = SVI(problem.model, problem.guide, numpyro.optim.Adam(problem.learning_rate), objective)
    num_data = len(problem.train)
    first, second, third, fourth = jax.random.split(key, 4)
    state = svi.init(first, problem.train[: problem.batch], num_data)

    def step(state: Any, key: Array) -> tuple[Any, Array]:
        rows = jax.random.choice(key, num_data, (problem.batch,), replace=False)
        return svi.update(state, problem.train[rows], num_data)

    state, losses = jax.lax.scan(step, state, jax.random.split(second, steps))
    params = svi.get_params(state)
    loc, scale = problem.codes(params, problem.held_out)
    codes = loc + scale * jax.random.normal(third, loc.shape)
    kl = (0.5 * (loc**2 + scale**2 - 1) - jnp.log(scale)).sum(-1).mean()
    prior = jax.random.normal(fourth, (FEW, loc.shape[-1]))
    last = losses[-LAST:] / num_data
    return {
        "log p(x)": problem.log_evidence(params, problem.held_out).mean(),
        "KL": kl,
        "MMD²": mmd_squared(codes, prior, RBF()),
        "swing": abs(last - last.mean()).max(),
    }


def linear(num_data: int, observed: int, latent: int, data: Array, steps: int) -> Problem:
    """Linear networks: x is normal given the parameters."""
    noise = 0.5

    def model(x: Array, size: int) -> None:
        decoder = network("decoder", (latent, observed), spread=SPREAD)
        with numpyro.plate("data", size, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(forward(decoder, z), noise).to_event(1), obs=x)

    def encoded(layers: Any, x: Array) -> tuple[Array, Array]:
        loc, log_scale = jnp.split(forward(layers, x), 2, -1)
        return loc, jnp.exp(log_scale)

    def guide(x: Array, size: int) -> None:
        loc, scale = encoded(network("encoder", (observed, 2 * latent), spread=SPREAD), x)
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def codes(params: dict[str, Array], x: Array) -> tuple[Array, Array]:
        return encoded([(params["encoder_weight_0"], params["encoder_bias_0"])], x)

    def log_evidence(params: dict[str, Array], x: Array) -> Array:
        weight = params["decoder_weight_0"]
        covariance = weight.T @ weight + noise**2 * jnp.eye(observed)
        normal = dist.MultivariateNormal(params["decoder_bias_0"], covariance)
        log_prob: Array = normal.log_prob(x)
        return log_prob

    train, held_out = data[:num_data], data[num_data:]
    return Problem(model, guide, train, held_out, codes, log_evidence, 100, 1e-2, steps)


def two_normals() -> Problem:
    """README's."""
    data = np.random.default_rng(0).normal(size=(1000, 2)) + 3
    return linear(500, 2, 2, jnp.asarray(data, jnp.float32), 1000)


def ten_factors() -> Problem:
    """Probabilistic principal components."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(10, 20)) / 2
    data = rng.normal(size=(2000, 10)) @ loadings + 0.5 * rng.normal(size=(2000, 20))
    return linear(1000, 20, 10, jnp.asarray(data, jnp.float32), 2000)


def digits() -> Problem:
    """An autoencoder, whose evidence is exact by a grid of its two codes."""
    train, held_out = digits_flow.digits()

    def codes(params: dict[str, Array], x: Array) -> tuple[Array, Array]:
        layers = [(params[f"encoder_weight_{i}"], params[f"encoder_bias_{i}"]) for i in range(2)]
        loc, log_scale = jnp.split(forward(layers, x / digits_flow.LEVELS), 2, -1)
        return loc, jnp.exp(log_scale)

    return Problem(
        digits_flow.model,
        digits_flow.guide,
        train,
        held_out,
        codes,
        digits_flow.log_evidence,
        digits_flow.BATCH,
        digits_flow.LEARNING_RATE,
        3000,
    )


MAKE: dict[str, Callable[[], Problem]] = dict(
    zip(PROGRAMS, (two_normals, ten_factors, digits), strict=True)
)

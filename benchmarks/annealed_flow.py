"""Bounds on log p(x) with a flow from the guide, trained from the guide that the ELBO finds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer import Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoDAIS, AutoDiagonalNormal
from numpyro.infer.elbo import ELBO

from benchmarks.measuring import Call, Estimate
from benchmarks.report import Report, Row
from numpyro_backend import SVI, TraceHamiltonian_ELBO

DATA = "BENCHMARKS_DATA"
"""The environment variable that names the folder of sonar.csv and ionosphere.csv."""

PROGRAMS = ("sonar", "ionosphere", "amortised Poisson model")
SEEDS = (0, 1)
STEPS = 4000
DRAWS = 8000
ROWS, BATCH = 500, 100


class Problem(NamedTuple):
    """What is trained.

    Attributes:
        model: the model.
        guide: the guide.
        batch: how many indices of a minibatch both take, or 0.
        particles: draws a step.
        learning_rate: Adam's.
        num_steps: the number of leapfrog steps K.
        rows: what a bound is divided by.
    """

    model: Callable[..., None]
    guide: Callable[..., Any]
    batch: int
    particles: int
    learning_rate: float
    num_steps: int
    rows: int


def measure(
    call: Call,
    *,
    programs: Sequence[str] = PROGRAMS,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    draws: int = DRAWS,
) -> Report:
    """A table of all programs; those whose data are not at hand are left out."""
    folder = os.environ.get(DATA)
    known = [name for name in programs if name == PROGRAMS[-1] or folder]
    return Report(
        title="TraceHamiltonian_ELBO: bounds with a flow from the guide",
        method=(
            f"NumPyro, float32, {steps} steps of Adam, all settings but K at their defaults."
            " *Sonar* (208 rows, 61 weights) and *ionosphere* (351 rows, 35): logistic regression"
            " with weights N(0, 1), from an AutoDiagonalNormal that Trace_ELBO has trained for as"
            " many steps, 5 draws a step, learning rate 0.01, K = 8; AutoDAIS from its own start."
            f" *Amortised*: {ROWS} rows of 3 counts, two latents each, a guide linear in log(1+x),"
            f" minibatches of {BATCH}, learning rate 0.003, K = 4, from the start; in nats per"
            f" row. Bounds of {draws} draws, over {len(seeds)} seeds; the seconds are those of"
            " training, compilation included."
        ),
        packages=["pyro-infovae", "jax", "numpyro"],
        tables=[
            [
                call(row, name, kind, seeds, steps, draws)
                for name in known
                for kind in KINDS
                if not (kind == "AutoDAIS" and name == PROGRAMS[-1])
            ]
        ],
    )


KINDS = ("Trace_ELBO", "AutoDAIS", 'path="posterior"', 'path="annealed"')


def row(name: str, kind: str, seeds: Sequence[int], steps: int, draws: int) -> Row:
    """The bound of one objective on one program."""
    problem, bounds, seconds = _problem(name), [], []
    if kind == "AutoDAIS":
        problem = problem._replace(guide=AutoDAIS(problem.model, K=problem.num_steps))
    for seed in seeds:
        objective, start = _contender(problem, kind, seed, steps)
        before = time.perf_counter()
        params = _trained(problem, objective, seed + 1, steps, start)
        seconds.append(time.perf_counter() - before)
        bounds.append(_bound(problem, objective, params, draws))
    error = float(np.std(bounds) / max(len(bounds) - 1, 1) ** 0.5)
    return {
        "program": name,
        "objective": kind,
        "K": "-" if kind == "Trace_ELBO" else problem.num_steps,
        "bound": Estimate(float(np.mean(bounds)), error),
        "seconds": float(np.median(seconds)),
    }


def _contender(
    problem: Problem, kind: str, seed: int, steps: int
) -> tuple[ELBO, dict[str, Any] | None]:
    """An objective, and what its parameters start from."""
    plain = Trace_ELBO(num_particles=problem.particles)
    if not kind.startswith("path"):
        return plain, None
    path: Any = kind.split('"')[1]
    flow = TraceHamiltonian_ELBO(problem.num_steps, path=path, num_particles=problem.particles)
    return flow, None if problem.batch else _trained(problem, plain, seed, steps, None)


def _trained(
    problem: Problem, objective: ELBO, seed: int, steps: int, start: dict[str, Any] | None
) -> dict[str, Any]:
    svi = SVI(problem.model, problem.guide, numpyro.optim.Adam(problem.learning_rate), objective)
    key, first = jax.random.split(jax.random.key(seed))
    indices = (jnp.arange(problem.batch),) if problem.batch else ()
    state = svi.init(first, *indices, init_params=start)

    def step(state: Any, key: Array) -> tuple[Any, Array]:
        if not problem.batch:
            return svi.update(state)
        chosen = jax.random.choice(key, ROWS, (problem.batch,), replace=False)
        return svi.update(state, chosen)

    state, _ = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
        state, jax.random.split(key, steps)
    )
    params: dict[str, Any] = jax.block_until_ready(svi.get_params(state))
    return params


def _bound(problem: Problem, objective: ELBO, params: dict[str, Any], draws: int) -> float:
    """The mean over many draws, of all rows."""
    indices = (jnp.arange(ROWS),) if problem.batch else ()
    count = max(draws // (ROWS if problem.batch else 1) // objective.num_particles, 1)

    @jax.jit
    def losses(keys: Array) -> Array:
        return jax.lax.map(
            lambda key: objective.loss(key, params, problem.model, problem.guide, *indices), keys
        )

    return -float(losses(jax.random.split(jax.random.key(99), count)).mean()) / problem.rows


def _problem(name: str) -> Problem:
    return _amortised() if name == PROGRAMS[-1] else _regression(name)


def _regression(name: str) -> Problem:
    table = np.loadtxt(
        Path(os.environ[DATA]) / f"{name}.csv", delimiter=",", skiprows=1, dtype=np.float32
    )
    x, y = table[:, :-1], jnp.asarray(table[:, -1])
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation == 0, 1, deviation)
    features = jnp.asarray(np.column_stack([np.ones(len(x), np.float32), x]))
    zeros = jnp.zeros(features.shape[1])

    def model() -> None:
        w = numpyro.sample("w", dist.Normal(zeros, 1.0).to_event(1))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=features @ w), obs=y)

    guide = AutoDiagonalNormal(model, init_loc_fn=init_to_value(values={"w": zeros}))
    return Problem(model, guide, 0, 5, 0.01, 8, 1)


def _amortised() -> Problem:
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(2, 3)) * 1.2)
    rates = np.exp(rng.normal(size=(ROWS, 2)) @ np.asarray(weights) + 0.3)
    counts = jnp.asarray(rng.poisson(rates), jnp.float32)

    def model(index: Array) -> None:
        with numpyro.plate("data", ROWS, len(index)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(index), 2)), 1.0).to_event(1))
            rate = jnp.exp(z @ weights + 0.3)
            numpyro.sample("x", dist.Poisson(rate).to_event(1), obs=counts[index])

    def guide(index: Array) -> None:
        slope = numpyro.param("slope", jnp.zeros((3, 4)))
        output = jnp.log1p(counts[index]) @ slope + numpyro.param("shift", jnp.zeros(4))
        with numpyro.plate("data", ROWS, len(index)):
            normal = dist.Normal(output[:, :2], jnp.exp(output[:, 2:] - 1))
            numpyro.sample("z", normal.to_event(1))

    return Problem(model, guide, BATCH, 1, 0.003, 4, ROWS)
